"""A distillation on two machines, one of which fails: the file of a local run with two processes.

Training costs the two cores little; what takes minutes is to install torch on the nodes.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command_line import run as command
from tests.pipeline.sweeps import TEXT
from tests.qad.small_training import tiny_teacher

from .launches import LAUNCH_SECONDS, Desk, processes_with, signal_all, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

STEPS = 72


def job_facts(folder: Path) -> dict[str, Any]:
    """Three passes of 24 steps, four chunks of 64 tokens each."""
    teacher = tiny_teacher(folder, layers=1, feed_forward=256)
    return {
        "kind": "qad",
        "name": "lab",
        "teacher": str(teacher),
        "student": {"init": {"quantize": "Q4_0", "imatrix": "auto"}},
        "data": {"text": str(TEXT), "tokens": 24 * 4 * 64, "context": 64, "heldout": 0.5},
        "train": {"epochs": 3, "global_batch": 4, "lr": 1e-3, "patience": "never"},
        "eval": {"every": 12, "chunks": 4, "heldout_chunks": 40},
        "checkpoints": {"every": 6, "keep": 2},
        "engine": {"threads": 1},
    }


@pytest.fixture
def desk(desk_for: Callable[[str], Desk], tmp_path: Path) -> Desk:
    made = replace(desk_for("qad"), job_facts=job_facts(tmp_path))
    made.write({"export": {"path": str(tmp_path / "remote.gguf")}})
    return made


def steps_done(desk: Desk) -> int:
    found = desk.records("qad/", "progress.json")
    return found[0]["step"] if found else 0


def test_a_node_that_fails_in_training_changes_no_bit_of_the_student(
    desk: Desk, tmp_path: Path
) -> None:
    launched = desk.begin()
    until(lambda: steps_done(desk) > 8 or launched.poll() is not None, seconds=LAUNCH_SECONDS)
    killed = processes_with(desk.lab, "n2", "ray::", "/raylet/raylet ")
    assert any("RayTrainWorker" in each.command for each in killed), desk.output.read_text()
    signal_all(killed, signal.SIGKILL)
    assert steps_done(desk) < STEPS
    assert launched.wait(LAUNCH_SECONDS) == 0, desk.output.read_text()
    (attempt,) = desk.attempts()
    (result,) = desk.records("qad/", "result.json")
    assert (attempt["state"], attempt["run"]) == ("finished", result["run"])
    student = desk.read(result["export"])
    assert (tmp_path / "remote.gguf").read_bytes() == student
    until(desk.machines_are_gone)

    here = tmp_path / "here.yaml"
    here.write_text("provider: local\nworkers: 2\nthreads_per_worker: 1\n")
    words = ["--cluster", here, "--store", tmp_path / "s", "--set", "export={}"]
    said = command("launch", desk.job, *words, timeout=LAUNCH_SECONDS)
    assert said.code == 0, said.err
    (local,) = (tmp_path / "s" / "qad").iterdir()
    assert local.name == result["run"]
    assert (local / "student.gguf").read_bytes() == student
    told = json.loads((local / "result.json").read_bytes())
    assert (told["looks"], told["failed"]) == (result["looks"], None)

    again = desk.launch()
    assert again.returncode == 0, again.stderr
    assert "asking SkyPilot" not in again.stderr
    assert "held-out: KLD" in again.stdout
