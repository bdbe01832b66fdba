"""Models in safetensors on two machines, beside a GGUF: the bytes of a local run.

What takes minutes is to install torch on the nodes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command_line import run as command
from tests.model_folders import folder_of
from tests.pipeline.sweeps import corpus, facts
from tests.tiny_models import tiny_pair

from .launches import LAUNCH_SECONDS, RESULTS, Desk, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def job_facts(folder: Path) -> dict[str, Any]:
    """A base on transformers, and a candidate on either engine."""
    pair = tiny_pair(folder / "gguf", vocabulary=320, bos=True)
    base = folder_of(pair.base, folder / "base-hf", max_shard="40KB")
    noisy = folder_of(pair.candidate, folder / "noisy-hf", dtype="float16")
    text = corpus(context=128, chunks=24)
    return facts(base, [pair.candidate, noisy], [text], encoding="hidden", shard_chunks=1)


@pytest.fixture
def desk(desk_for: Callable[[str], Desk], tmp_path: Path) -> Desk:
    made = replace(desk_for("folders"), job_facts=job_facts(tmp_path))
    made.write()
    return made


def test_folders_of_safetensors_come_to_the_bytes_of_a_local_run(
    desk: Desk, tmp_path: Path
) -> None:
    said = desk.launch()
    assert said.returncode == 0, said.stderr
    assert {each["host"] for each in desk.records("runs/", "worker-")} == {"n1", "n2"}
    remote = desk.result_bytes()
    summary = json.loads(remote["summary.json"])
    assert summary["engine"]["name"] == "transformers"
    (elsewhere,) = (its["name"] for its in summary["engines"].values() if "name" in its)
    assert elsewhere == "llama.cpp"
    until(desk.machines_are_gone)

    here = tmp_path / "here.yaml"
    here.write_text("provider: local\nworkers: 1\nthreads_per_worker: 1\n")
    words = ["--cluster", here, "--store", tmp_path / "store"]
    local = command("launch", desk.job, *words, timeout=LAUNCH_SECONDS)
    assert local.code == 0, local.err
    (run,) = (tmp_path / "store" / "runs").iterdir()
    assert {name: (run / name).read_bytes() for name in RESULTS} == remote
