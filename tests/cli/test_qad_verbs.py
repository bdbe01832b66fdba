"""A distillation job on the command line: its plan, its end, and where it is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from command_line import Said

from kldcloud.errors import EngineError, KldcloudError
from kldcloud.spec.qad_job import QadJob
from tests.report.summaries import as_summary, summary_dict

Command = Callable[..., Said]

JOB = """\
kind: qad
name: demo
teacher: teacher.gguf
student: {init: {quantize: Q4_0}}
data: {text: a.txt, tokens: 8k}
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "qad.yaml"
    path.write_text(f"{JOB}store: {tmp_path / 'store'}\n")
    return path


def trained(
    monkeypatch: pytest.MonkeyPatch,
    failed: KldcloudError | None = None,
    export: str = "qad/demo-0123abcd/student.gguf",
) -> list[tuple[Any, ...]]:
    """Let every job end at once; returns what each was started with."""
    started: list[tuple[Any, ...]] = []

    def run_qad(*arguments: Any) -> SimpleNamespace:
        started.append(arguments)
        return SimpleNamespace(
            run="demo-0123abcd",
            summary=as_summary(summary_dict()),
            verdict=SimpleNamespace(lines=("held-out: better", "second-text: better")),
            failed=failed,
            seconds=61.4,
            export=export,
        )

    module = ModuleType("kldcloud.pipeline.qad")
    module.run_qad = run_qad  # type: ignore[attr-defined]  # a module made here
    module.QadOutcome = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kldcloud.pipeline.qad", module)
    return started


def test_a_launch_trains_and_shows_table_verdict_and_file(
    job: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = trained(monkeypatch)
    said = command("launch", job, "--set", "train.seed=7")
    assert said.code == 0, said.err
    ((given, where, store, _),) = started
    assert isinstance(given, QadJob)
    assert (given.train.seed, where.remote) == (7, False)
    assert store.uri.endswith("/store")
    assert "mean KLD" in said.out
    assert said.out.splitlines()[-2:] == ["held-out: better", "second-text: better"]
    file, again = said.err.splitlines()
    assert file == f"demo-0123abcd in 61 s: {store.uri}/qad/demo-0123abcd/student.gguf"
    assert again.startswith(f"kldcloud report {summary_dict()['run']} --store {store.uri} --format")


def test_json_of_a_launch_is_the_summary_and_nothing_else(
    job: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(monkeypatch)
    said = command("launch", job, "--json")
    assert json.loads(said.out) == as_summary(summary_dict()).to_json_dict()
    assert "held-out: better\nsecond-text: better\n" in said.err


def test_without_a_file_none_is_spoken_of(
    job: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(monkeypatch, export="")
    (again,) = command("launch", job).err.splitlines()
    assert again.startswith("kldcloud report ")


def test_a_file_that_is_no_better_is_shown_and_ends_in_exit_code_1(
    job: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(monkeypatch, EngineError("demo is no better than its init"))
    said = command("launch", job)
    assert said.code == 1
    assert "mean KLD" in said.out
    file, complaint = said.err.splitlines()
    assert file.endswith("/student.gguf")
    assert complaint == "kldcloud: demo is no better than its init"


@pytest.mark.parametrize("verb", [("plan",), ("launch", "--dry-run")])
def test_a_plan_starts_and_writes_nothing(
    job: Path, command: Command, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...]
) -> None:
    started = trained(monkeypatch)
    said = command(*verb, job)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("demo: Q4_0, distilled from teacher on local\n")
    assert "1 step of 8 chunks" in said.out
    assert json.loads(command(*verb, job, "--json").out)["steps"] == 1
    assert not started
    assert not (job.parent / "store").exists()


def test_other_machines_cannot_reach_a_folder_of_this_one(
    job: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = trained(monkeypatch)
    rented = job.parent / "rented.yaml"
    rented.write_text("provider: skypilot\nresources: {infra: slurm/nowhere}\n")
    said = command("launch", "-y", job, "--cluster", rented)
    assert said.complaint.startswith(f"store {job.parent / 'store'} is a folder here, out of reach")
    assert not started


def test_an_option_of_sweeps_is_refused(job: Path, command: Command) -> None:
    assert command("plan", job, "--pilot", "0123").complaint == (
        "--pilot is for sweeps, and this is a qad job; leave it out"
    )


@pytest.mark.parametrize("verb", ["logs", "cancel", "down"])
def test_a_launch_is_found_by_its_file(job: Path, command: Command, verb: str) -> None:
    assert command(verb, job).complaint == f"{job} has not been launched on other machines"


@pytest.mark.parametrize("verb", ["report", "status", "compare"])
def test_its_run_is_not_found_by_its_file(job: Path, command: Command, verb: str) -> None:
    more = ("0123",) if verb == "compare" else ()
    assert command(verb, job, *more).complaint == (
        f"{job}: this is a qad job, whose run cannot be told from its file; "
        "give the run's id, as launch printed it"
    )


def test_a_job_that_makes_no_sense_is_refused_before_anything_is_opened(
    job: Path, command: Command
) -> None:
    said = command("launch", job, "--set", "data.tokens=few")
    assert said.complaint == (
        "--set: data.tokens: must be all or a number of tokens such as 20k, 5M or 1B, not 'few'"
    )
    assert not (job.parent / "store").exists()
