"""Distillation as people launch it: trained, exported, measured, and the same after a kill -9."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kldcloud.clusters.local_ray import LocalMachines
from kldcloud.errors import EngineError
from kldcloud.models.gguf_header import read_gguf_header
from kldcloud.pipeline.machines import NodeFacts, this_node
from kldcloud.pipeline.qad import run_qad
from kldcloud.qad.progress_file import read_progress
from kldcloud.report.summary_file import parse_summary
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.qad_job import QadJob
from kldcloud.store import open_store
from tests.pipeline.sweeps import TEXT, Notes, launch, until
from tests.qad.small_training import tiny_teacher

STEPS = 24


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A temporary folder whose name leaves room for those of Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="k-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_teacher(tmp_path_factory.mktemp("teacher"), layers=1, feed_forward=256)


def job(teacher: Path, **changes: Any) -> dict[str, Any]:
    """Two dozen steps of four chunks of 64 tokens."""
    train = {"global_batch": 4, "lr": 1e-3, "patience": "never", **changes.pop("train", {})}
    return {
        "kind": "qad",
        "name": "tiny",
        "teacher": str(teacher),
        "student": {"init": {"quantize": "Q4_0", "imatrix": "auto"}},
        "data": {"text": str(TEXT), "tokens": STEPS * 4 * 64, "context": 64, "heldout": 0.5},
        "train": train,
        "eval": {"every": 8, "chunks": 4, "heldout_chunks": 40},
        "checkpoints": {"every": 4, "keep": 2},
        **changes,
    }


def qad_run(store: Path) -> Path:
    (run,) = (store / "qad").iterdir()
    return run


@pytest.mark.slow
def test_a_job_ends_with_a_better_file_and_says_by_how_much(
    teacher: Path, short_folder: Path, tmp_path: Path
) -> None:
    store, copy = tmp_path / "store", tmp_path / "copy.gguf"
    whole = job(teacher, export={"path": str(copy)})
    code, out, errors = launch(short_folder / "t", whole, store).wait(240)
    assert code == 0, errors
    run = qad_run(store)
    result = json.loads((run / "result.json").read_text())
    assert (result["steps"], result["failed"]) == (STEPS, None)
    looks = result["looks"]
    assert [each["step"] for each in looks] == [0, 8, 16, 24]
    assert min(each["kld"] for each in looks[1:]) < looks[0]["kld"]
    assert (result["init"], result["student"]) == ("Q4_0-imat", "Q4_0-imat-qad")
    assert result["tokens"] == STEPS * 4 * 64

    summary = parse_summary((store / "runs" / result["sweep"] / "summary.json").read_bytes())
    means = {each.candidate: each.result.kld.mean.value for each in summary.results if each.result}
    assert list(means) == ["Q4_0", "Q4_0-imat", "Q4_0-imat-qad"]
    assert means["Q4_0-imat-qad"] < means["Q4_0-imat"]
    (line,) = result["verdict"]
    assert line in out
    change = means["Q4_0-imat-qad"] / means["Q4_0-imat"] - 1
    assert f"held-out: KLD {means['Q4_0-imat-qad']:.4f} against" in line
    assert f"({change:+.1%})" in line
    assert "better by" in line

    progress = read_progress(open_store(str(store)), f"qad/{run.name}")
    assert progress is not None
    assert (progress.stage, progress.step, progress.warning) == ("finished", STEPS, "")
    assert len(list(run.glob("tensorboard/*/events.out.tfevents.*"))) == 1
    for name in ("report.md", "report.html"):
        report = (store / "runs" / result["sweep"] / name).read_text()
        assert f"after {STEPS} steps of distillation" in report

    student = run / "student.gguf"
    assert copy.read_bytes() == student.read_bytes()
    header = read_gguf_header(student)
    assert {each.type_name for each in header.tensors.values()} >= {"Q4_0", "F32"}
    again, _, errors = launch(short_folder / "u", whole, store).wait(240)
    assert again == 0
    assert "is complete already" in errors
    assert open_store(str(store)).size(f"qad/{run.name}/refused.json") is None


@pytest.mark.slow
def test_a_launch_that_was_killed_goes_on_and_ends_in_the_same_file(
    teacher: Path, short_folder: Path, tmp_path: Path
) -> None:
    quiet, disturbed = tmp_path / "quiet", tmp_path / "disturbed"
    assert launch(short_folder / "q", job(teacher), quiet).wait(240)[0] == 0
    started = launch(short_folder / "d", job(teacher), disturbed)
    until(lambda: list(disturbed.glob("qad/*/checkpoints/00000008/state.json")), seconds=120)
    started.signal(signal.SIGKILL)
    started.wait(60)
    code, _, errors = launch(short_folder / "e", job(teacher), disturbed).wait(240)
    assert code == 0, errors
    assert "training goes on from step" in errors
    one, other = qad_run(quiet), qad_run(disturbed)
    assert one.name == other.name
    assert (one / "student.gguf").read_bytes() == (other / "student.gguf").read_bytes()
    assert (one / "result.json").read_bytes() == (other / "result.json").read_bytes()


@pytest.mark.slow
def test_ctrl_c_ends_training_and_nothing_is_made_of_half_a_student(
    teacher: Path, short_folder: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    started = launch(short_folder / "t", job(teacher, train={"epochs": 50}), store)
    until(lambda: list(store.glob("qad/*/checkpoints/00000008/state.json")), seconds=120)
    started.signal(signal.SIGINT)
    code, out, errors = started.wait(60)
    assert (code, out) == (130, ""), errors
    assert "Traceback" not in errors
    assert not (qad_run(store) / "student.gguf").exists()
    assert not started.ray_folders()


@pytest.mark.slow
def test_a_student_that_is_no_better_is_a_failure_and_is_kept(
    teacher: Path, short_folder: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    code, out, errors = launch(short_folder / "t", job(teacher, train={"lr": 1e-9}), store).wait(
        240
    )
    assert code == 1
    assert "Q4_0-imat-qad" in out
    last = errors.splitlines()[-1]
    assert "Q4_0-imat-qad is not distinguishable from Q4_0-imat on held-out text" in last
    assert "the file is kept" in last
    run = qad_run(store)
    assert (run / "student.gguf").exists()
    assert json.loads((run / "result.json").read_text())["failed"]


@pytest.mark.slow
def test_where_quantising_loses_little_nothing_is_trained(
    teacher: Path, short_folder: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    whole = job(teacher, train={"skip_below": 50.0})
    code, out, errors = launch(short_folder / "t", whole, store).wait(240)
    assert code == 0, errors
    assert "nothing is trained: the init loses" in errors
    assert "less than train.skip_below of 50" in errors
    run = qad_run(store)
    assert not (run / "student.gguf").exists()
    assert "Q4_0-imat" in out
    assert "qad" not in out


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data": {"text": str(TEXT), "context": 8192}}, "too few for 4 chunks of 8192"),
        ({"train": {"global_batch": 400}}, "chunks, fewer than one step of 400"),
        ({"teacher": "/missing.gguf"}, "teacher: /missing.gguf does not exist; correct it in the"),
        ({"student": {"init": "/missing.gguf"}}, "student.init: /missing.gguf does not exist"),
        (
            {"eval": {"second_text": "/missing.txt"}},
            "eval.second_text: /missing.txt does not exist",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    teacher: Path, short_folder: Path, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    whole = job(teacher) | change
    if "train" in change:
        whole["data"] = {**whole["data"], "tokens": "all"}
    code, out, errors = launch(short_folder / "t", whole, tmp_path / "store").wait(120)
    assert (code, out) == (2, "")
    assert reason in errors.splitlines()[-1]
    assert "Traceback" not in errors


class WithUnusedGpu(LocalMachines):
    """This machine, said to have a GPU that its llama.cpp was not built for."""

    def nodes(self) -> Sequence[NodeFacts]:
        return (replace(this_node(), gpus=1),)


def test_gpus_that_would_idle_in_the_sweep_are_refused_before_training(
    teacher: Path, tmp_path: Path
) -> None:
    wanted = QadJob.model_validate(job(teacher, engine={"n_gpu_layers": -1}))
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(EngineError, match="sees none of its GPUs"):
        run_qad(wanted, ClusterSpec(), store, Notes(), WithUnusedGpu())
    assert not list(store.list(""))
