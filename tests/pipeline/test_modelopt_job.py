"""A distillation by Model Optimizer, but for the training: that needs CUDA and was never run here.

Its programs are stand-ins (see `stand_in`) that round the teacher to nearest. So the student is the
file that it should beat, and what is proven is the way there: files, commands, the exported folder,
the GGUF, its sweep and the verdict.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kldcloud.errors import EngineError, UserError
from kldcloud.models.gguf_header import read_gguf_header
from kldcloud.pipeline import qad_modelopt
from kldcloud.pipeline.qad import QadOutcome, run_qad
from kldcloud.qad.modelopt.pinned import VARIABLE
from kldcloud.qad.progress_file import read_progress
from kldcloud.report.summary_file import parse_summary
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.qad_job import QadJob
from kldcloud.store import open_store
from tests.pipeline.sweeps import TEXT, Notes, launch
from tests.pipeline.test_qad import qad_run, short_folder
from tests.qad.modelopt.stand_in import FAIL, stand_in_environment
from tests.qad.small_training import tiny_teacher

__all__ = ["short_folder"]

STEPS = 8


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with two GPUs and Model Optimizer, as far as we ask it."""
    made = stand_in_environment(tmp_path / "environment")
    monkeypatch.setenv(VARIABLE, str(made))
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SOME_SECRET", "s")
    monkeypatch.setattr(qad_modelopt, "usable_gpus", lambda: 2)
    return made


def job(teacher: Path, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "qad",
        "name": "tiny",
        "teacher": str(teacher),
        "student": {"format": "nvfp4", "trainer": "modelopt"},
        "data": {"text": str(TEXT), "tokens": STEPS * 4 * 64, "context": 64, "heldout": 0.5},
        "train": {"global_batch": 4},
        "eval": {"every": 2, "chunks": 4, "heldout_chunks": 4},
        "checkpoints": {"every": 2, "keep": 2},
        "export": {"to": "hf"},
        **changes,
    }


def run(whole: dict[str, Any], store: Path) -> tuple[QadOutcome, Notes]:
    notes = Notes()
    return run_qad(
        QadJob.model_validate(whole), ClusterSpec(workers="auto"), open_store(str(store)), notes
    ), notes


@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_a_job_goes_from_a_gguf_through_its_programs_to_a_verdict(
    environment: Path, tmp_path: Path
) -> None:
    teacher = tiny_teacher(tmp_path, layers=1, feed_forward=256)
    store, folder = tmp_path / "store", tmp_path / "student"
    whole = job(teacher, export={"to": "hf", "path": str(folder)})
    (environment / "source" / "examples" / "llm_qat" / FAIL).touch()
    with pytest.raises(EngineError, match=r"step train ended with exit code 1: .*out of memory"):
        run(whole, store)
    kept = qad_run(store)
    died = read_progress(open_store(str(store)), f"qad/{kept.name}")
    assert died is not None
    assert (died.stage, died.step) == ("failed", 2)
    assert "CUDA out of memory" in (kept / "modelopt.log").read_text()

    outcome, notes = run(whole, store)
    assert "training goes on from step 2 of 8" in notes.notes
    log = (kept / "modelopt.log").read_text()
    assert "Last checkpoint detected: 2; 4 chunks a step" in log
    assert log.count("quantize.py") == 1
    result = json.loads((kept / "result.json").read_text())
    assert (result["init"], result["student"]) == ("NVFP4", "NVFP4-qad")
    assert (result["steps"], result["tokens"]) == (STEPS, STEPS * 4 * 64)
    assert [each["step"] for each in result["looks"]] == [0, 2, 4, 6, 8]
    assert result["looks"][1] == {"step": 2, "kld": 0.5 / 3, "same_top": None}

    summary = parse_summary((store / "runs" / result["sweep"] / "summary.json").read_bytes())
    means = {each.candidate: each.result.kld.mean.value for each in summary.results if each.result}
    assert list(means) == ["NVFP4", "NVFP4-qad"]
    # Norms went through bfloat16, and nothing else differs.
    assert means["NVFP4-qad"] == pytest.approx(means["NVFP4"], rel=0.2)
    assert outcome.failed is not None
    assert "on held-out text" in str(outcome.failed)
    header = read_gguf_header(kept / "student.gguf")
    assert header.tensors["blk.0.attn_q.weight"].type_name == "NVFP4"
    names = sorted(each.name for each in folder.iterdir())
    assert names == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    for name in names:
        assert (kept / "student" / name).read_bytes() == (folder / name).read_bytes()
    report = (store / "runs" / result["sweep"] / "report.md").read_text()
    assert f"after {STEPS} steps of distillation" in report
    assert not list((tmp_path / "cache" / "qad").glob("*-modelopt"))

    (student,) = (tmp_path / "cache" / "qad").glob("*-modelopt.gguf")
    student.unlink()
    again, notes = run(whole, store)
    assert f"training {kept.name} is complete already" in notes.notes
    assert again.summary == outcome.summary
    assert student.read_bytes() == (kept / "student.gguf").read_bytes()


def test_a_cluster_that_does_not_fit_is_refused_before_anything_is_made(
    short_folder: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    teacher = tiny_teacher(tmp_path, layers=1, feed_forward=256)
    started = launch(short_folder / "t", job(teacher), store)
    code, out, errors = started.wait(120)
    assert (code, out) == (2, "")
    assert "has workers: 1; write workers: auto there" in errors.splitlines()[-1]
    assert not list(store.glob("*/*"))


def test_which_machine_it_needs_is_said_in_one_line(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = job(tiny_teacher(tmp_path, layers=1, feed_forward=256))
    monkeypatch.setattr(qad_modelopt, "usable_gpus", lambda: 0)
    with pytest.raises(UserError, match="needs an NVIDIA GPU that torch can use") as caught:
        run(whole, tmp_path / "store")
    assert "--cluster h100" in str(caught.value)
    monkeypatch.setattr(qad_modelopt, "usable_gpus", lambda: 3)
    with pytest.raises(UserError, match="global_batch of 4 cannot be shared by 3 GPUs"):
        run(whole, tmp_path / "store")
    monkeypatch.setattr(qad_modelopt, "usable_gpus", lambda: 2)
    (environment / "bin" / "accelerate").unlink()
    with pytest.raises(UserError, match=f"{VARIABLE}={environment} is none"):
        run(whole, tmp_path / "store")
