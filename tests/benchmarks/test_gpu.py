"""The GPU benchmark runs, small, on a CPU too; without a GPU it says so in a line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def test_on_a_cpu_it_measures_the_same_things_at_a_small_size() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--cpu", "--json"], check=True, stdout=subprocess.PIPE
    )
    half, single = json.loads(done.stdout)["dtypes"]
    assert (half["dtype"], single["dtype"]) == ("bfloat16", "float32")
    assert single["largest_error"] < 1e-6
    assert half["largest_error"] < 1e-6
    assert single["mean_kld"] == pytest.approx(single["mean_kld_dense"], rel=1e-4)
    # The peer rounds its logits to bfloat16.
    assert half["mean_kld"] == pytest.approx(half["mean_kld_dense"], rel=0.05)
    for figures in (half, single):
        assert all(line["rows_per_s"] > 0 for line in figures["contestants"].values())
        assert 0 < figures["of_limit"]["kldcloud"] < 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    done = subprocess.run([sys.executable, SCRIPT], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "no GPU that PyTorch can use; --cpu runs a small size without one"
    ]


def test_a_sweep_beside_the_forward_pass_runs_at_a_small_size() -> None:
    script = SCRIPT.with_name("gpu_sweep.py")
    done = subprocess.run(
        [sys.executable, script, "--cpu", "--json"], check=True, stdout=subprocess.PIPE
    )
    rates = json.loads(done.stdout)["tokens_per_second"]
    assert list(rates) == ["forward", "kldcloud", "kldcloud + llama.cpp's"]
    assert all(rate > 0 for rate in rates.values())


def test_a_gguf_sweep_beside_a_stand_in_for_the_gpu_runs_at_a_small_size() -> None:
    script = SCRIPT.with_name("llama_gpu.py")
    sizes = {"vocabulary": 500, "context": 32, "chunks": 4, "forward-ms": 1, "rounds": 1}
    small = [f"--{name}={value}" for name, value in sizes.items()]
    done = subprocess.run(
        [sys.executable, script, *small, "--json"], check=True, stdout=subprocess.PIPE
    )
    rates = json.loads(done.stdout)["tokens_per_second"]
    assert list(rates) == ["forward", "kldcloud", "kldcloud + llama.cpp's", "nothing ahead"]
    assert all(rate > 0 for rate in rates.values())
