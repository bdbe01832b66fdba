"""The benchmark of training runs, small, on a CPU too; its peer trains the same steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "qad_training.py"


@pytest.mark.slow
def test_contestants_train_the_same_steps() -> None:
    found = subprocess.run(
        [sys.executable, SCRIPT, "--cpu", "--json"],
        check=True,
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    contestants = json.loads(found.stdout)["contestants"]
    peer, single, half, again = contestants.values()
    assert all(each["tokens_per_s"] > 0 for each in contestants.values())
    assert peer["of_peer"] == 1
    assert half["first_kld"] == again["first_kld"] != single["first_kld"]
    for each in (peer, half):
        assert each["first_kld"] == pytest.approx(single["first_kld"], rel=0.03)


def test_training_needs_neither_ray_nor_llama_cpp_nor_s3() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import kldcloud.qad.training, sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    )
    loaded = found.stdout.split()
    assert "torch" in loaded
    assert not {"ray", "llama_cpp", "boto3", "pandas", "pyarrow"} & set(loaded)
