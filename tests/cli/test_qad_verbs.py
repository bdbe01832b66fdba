"""A distillation job on the command line: its plan, its end, and where it is refused."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from command_line import Said

from kldcloud.errors import EngineError, KldcloudError
from kldcloud.pipeline.runs import job_bytes
from kldcloud.report.summary_file import dump_summary
from kldcloud.spec.qad_job import QadJob
from kldcloud.store import open_store
from tests.cli.test_start import imported_by
from tests.report.summaries import as_summary, summary_dict
from tests.rewritten import rewritten
from tests.status.kept_qads import QAD, KeptQad
from tests.tiny_models import tiny_pair

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
    assert again.startswith(f"kldcloud report demo-0123abcd --store {store.uri} shows it again")


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


@pytest.mark.parametrize(
    ("settings", "make", "complaint"),
    [
        (["export.path=out.gguf"], Path.mkdir, "out.gguf is not a file; give export.path the name"),
        (["export.path=out.gguf"], os.mkfifo, "out.gguf is not a file; give export.path the name"),
        (
            ["export.path=out", "export.to=hf", "student={format: nvfp4}"],
            Path.touch,
            "out is not a folder; give export.path another name",
        ),
    ],
    ids=["folder", "pipe", "file"],
)
def test_a_place_that_cannot_take_the_result_is_refused_before_training(
    job: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    settings: list[str],
    make: Callable[[Path], None],
    complaint: str,
) -> None:
    started = trained(monkeypatch)
    monkeypatch.chdir(job.parent)
    make(job.parent / settings[0].partition("=")[2])
    said = command("launch", job, *(part for each in settings for part in ("--set", each)))
    assert said.code == 2
    assert complaint in said.complaint
    assert not started


def test_other_machines_cannot_reach_a_folder_of_this_one(
    job: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = trained(monkeypatch)
    rented = job.parent / "rented.yaml"
    rented.write_text("provider: skypilot\nresources: {infra: slurm/nowhere}\n")
    said = command("launch", "-y", job, "--cluster", rented)
    assert said.complaint.startswith(f"store {job.parent / 'store'} is a folder here, out of reach")
    assert not started


@pytest.mark.parametrize("verb", [["plan"], ["launch", "-y"]])
def test_an_architecture_that_cannot_be_trained_is_refused_by_name(
    job: Path, command: Command, verb: list[str]
) -> None:
    base = tiny_pair(job.parent / "pair", vocabulary=320, bos=True).base
    model = rewritten(base, job.parent / "teacher.gguf", architecture="mamba")
    said = command(*verb, job, "--set", f"teacher={{model: {model}}}")
    assert f"{model}: cannot train the architecture 'mamba'; use a model of " in said.complaint
    assert not (job.parent / "store").exists()


def test_an_option_of_sweeps_is_refused(job: Path, command: Command) -> None:
    assert command("plan", job, "--pilot", "0123").complaint == (
        "--pilot is for sweeps, and this is a qad job; leave it out"
    )


@pytest.mark.parametrize("verb", ["logs", "cancel", "down"])
def test_a_launch_is_found_by_its_file(job: Path, command: Command, verb: str) -> None:
    assert command(verb, job).complaint == f"{job} has not been launched on other machines"


@pytest.mark.parametrize("verb", ["compare"])
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


# What it left in its store


@pytest.fixture
def kept(tmp_path: Path) -> KeptQad:
    """A distillation that has ended, and the sweep that measured it."""
    kept = KeptQad(open_store(str(tmp_path / "kept")))
    kept.job()
    kept.progress(time.time(), stage="finished", step=10)
    summary = summary_dict()
    kept.result(sweep=summary["run"])
    kept.store.write(f"runs/{summary['run']}/summary.json", dump_summary(summary))
    return kept


def in_store(kept: KeptQad, *arguments: object) -> tuple[object, ...]:
    return (*arguments, "--store", kept.store.uri)


def test_its_job_file_its_id_and_a_prefix_find_it(
    kept: KeptQad, job: Path, command: Command
) -> None:
    job.write_bytes(job_bytes(kept.job()))
    shown = command(*in_store(kept, "status", QAD)).out
    assert shown.startswith(f"{QAD}  finished")
    report = command(*in_store(kept, "report", QAD)).out
    for name in (job, "small-0", "latest"):
        assert (
            command(*in_store(kept, "status", name)).out.splitlines()[1:]
            == (shown.splitlines()[1:])
        )
        assert command(*in_store(kept, "report", name)).out == report


@pytest.mark.parametrize("verb", ["status", "report"])
def test_one_that_was_never_launched_is_not_there(job: Path, command: Command, verb: str) -> None:
    store = job.parent / "store"
    assert command(verb, job).complaint == f"no run {job} in {store}; launch the job"


def test_a_report_says_what_was_gained_then_how_it_went_then_the_sweeps_table(
    kept: KeptQad, command: Command
) -> None:
    said = command(*in_store(kept, "report", QAD))
    assert (said.code, said.err) == (0, "")
    sweep = summary_dict()["run"]
    title, *lines = said.out.splitlines()
    assert title == QAD
    assert " ".join(map(str.strip, lines[:2])) == (
        "Q4_0-imat-qad is Q4_0-imat after 10 steps of distillation from teacher, 10,240 tokens;"
        " its file is that of step 5."
    )
    assert lines[2:8] == [
        "held-out: KLD 0.1900 against 0.2500 of Q4_0-imat (-24.0%)",
        "  step  held-out KLD  same top %",
        "     0      0.250000       75.00",
        "     5      0.190000       80.00",
        "    10      0.200000       79.00",
        "",
    ]
    assert "mean KLD" in said.out
    # The sweep's own id shows the same.
    assert command(*in_store(kept, "report", sweep)).out == said.out
    markdown = command(*in_store(kept, "report", QAD, "--format", "md")).out
    assert "\n## Training\n\n`Q4_0-imat-qad` is `Q4_0-imat` after 10 steps" in markdown
    assert "\n| 5 | 0.190000 | 80.00 |\n" in markdown
    page = command(*in_store(kept, "report", QAD, "--format", "html")).out
    assert "<td>0.190000</td>" in page


def test_json_of_a_report_is_the_sweeps_summary(kept: KeptQad, command: Command) -> None:
    said = command(*in_store(kept, "report", QAD, "--format", "json"))
    assert json.loads(said.out) == as_summary(summary_dict()).to_json_dict()


def test_a_report_of_one_that_failed_says_so(kept: KeptQad, command: Command) -> None:
    kept.result(sweep=summary_dict()["run"], failed="Q4_0-imat-qad is worse than Q4_0-imat")
    assert "\nFailed: Q4_0-imat-qad is worse than Q4_0-imat.\n" in (
        command(*in_store(kept, "report", QAD)).out
    )


def test_a_report_of_one_that_was_not_trained_says_so(kept: KeptQad, command: Command) -> None:
    kept.result(sweep=summary_dict()["run"], student="", steps=0, tokens=0, export="", verdict=())
    assert command(*in_store(kept, "report", QAD)).out.splitlines()[1] == (
        "Nothing was trained: Q4_0-imat loses less on held-out text than train.skip_below."
    )


def test_a_report_before_the_end_is_refused(kept: KeptQad, command: Command) -> None:
    hint = "kldcloud status says whether it is at work; if not, launch its job again"
    expected = f"run {QAD} has no result yet; {hint}"
    kept.result(sweep="../../elsewhere")
    assert command(*in_store(kept, "report", QAD)).complaint == expected
    kept.store.delete(f"qad/{QAD}/result.json")
    assert command(*in_store(kept, "report", QAD)).complaint == expected


def test_names_in_a_result_steer_neither_terminal_nor_page(kept: KeptQad, command: Command) -> None:
    evil = "\x1b]0;owned\x07<script>alert(1)</script>|`" * 20
    changes = dict.fromkeys(("teacher", "init", "student", "failed"), evil)
    kept.result(sweep=summary_dict()["run"], verdict=(evil,), **changes)
    for options in ([], ["--format", "md"]):
        said = command(*in_store(kept, "report", QAD, *options))
        assert all(line.isprintable() for line in said.out.splitlines())
    outside = re.sub("(`+).*?\\1", "", said.out)
    assert "<script>" not in outside
    assert "<script>alert" not in command(*in_store(kept, "report", QAD, "--format", "html")).out


def test_status_watches_it_to_its_end(kept: KeptQad, command: Command) -> None:
    said = command(*in_store(kept, "status", QAD, "-w"))
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"{QAD}  finished")
    found = [
        json.loads(each)
        for each in command(*in_store(kept, "status", QAD, "-w", "--json")).out.splitlines()
    ]
    assert [(each["kind"], each["state"]) for each in found] == [("qad", "finished")]


def test_runs_lists_it(kept: KeptQad, command: Command) -> None:
    lines = command(*in_store(kept, "runs")).out.splitlines()
    assert any(line.split()[:5] == [QAD, "finished", "10", "of", "10"] for line in lines)
    found = json.loads(command(*in_store(kept, "runs", "--json")).out)["runs"]
    assert {each["id"]: each["kind"] for each in found}[QAD] == "qad"


def test_seeing_it_needs_neither_torch_nor_ray_nor_skypilot(kept: KeptQad) -> None:
    heavy = {"torch", "transformers", "tensorboard", "sky", "ray", "llama_cpp", "boto3"}
    for verb in (("status", QAD), ("runs",), ("report", QAD)):
        assert not imported_by(*map(str, in_store(kept, *verb))) & heavy
