"""An NVFP4 distillation as people launch it: a GGUF that loses less, and a folder for others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from kldcloud.models.gguf_header import read_gguf_header
from kldcloud.qad.torch_model import load_model
from kldcloud.report.summary_file import parse_summary
from tests.pipeline.sweeps import launch
from tests.pipeline.test_qad import job, qad_run, short_folder
from tests.qad.small_training import tiny_teacher

__all__ = ["short_folder"]


@pytest.mark.slow
def test_a_job_ends_with_a_better_nvfp4_file_and_its_folder(
    short_folder: Path, tmp_path: Path
) -> None:
    teacher = tiny_teacher(tmp_path, layers=1, feed_forward=256)
    store, folder = tmp_path / "store", tmp_path / "student"
    whole = job(
        teacher,
        student={"format": "nvfp4", "activations": True},
        export={"to": "hf", "path": str(folder)},
        train={"lr": 3e-4, "lr_norms": 2e-3},
    )
    code, _, errors = launch(short_folder / "t", whole, store).wait(240)
    assert code == 0, errors
    run = qad_run(store)
    result = json.loads((run / "result.json").read_text())
    summary = parse_summary((store / "runs" / result["sweep"] / "summary.json").read_bytes())
    means = {each.candidate: each.result.kld.mean.value for each in summary.results if each.result}
    assert list(means) == ["NVFP4", "NVFP4-qad"]
    assert means["NVFP4-qad"] < means["NVFP4"]
    header = read_gguf_header(run / "student.gguf")
    assert header.tensors["blk.0.attn_q.weight"].type_name == "NVFP4"

    assert sorted(each.name for each in folder.iterdir()) == ["config.json", "model.safetensors"]
    for each in folder.iterdir():
        assert (run / "student" / each.name).read_bytes() == each.read_bytes()
    student = dict(load_model(run / "student.gguf").named_parameters())
    stored = load_file(folder / "model.safetensors")
    largest = student["model.layers.0.mlp.down_proj.weight"].abs().max().item()
    inverse = stored["model.layers.0.mlp.down_proj.weight_global_scale"].item()
    assert largest == pytest.approx(6 * 448 / inverse, rel=1e-5)
    assert stored["model.layers.0.self_attn.q_proj.input_global_scale"].item() > 0
    assert "measured by llama.cpp, whose activations are not NVFP4" in errors
