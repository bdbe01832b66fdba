"""The folder of an NVFP4 student: its layout by the letter, and by the package that defines it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kldcloud.errors import EngineError, FormatError, StoreError
from kldcloud.qad import hf_folder
from kldcloud.qad.export import export_gguf
from kldcloud.qad.hf_folder import FILES, copy_files, export_hf
from kldcloud.qad.nvfp4_file import RUN_BY_LLAMA_CPP
from kldcloud.qad.nvfp4_layers import input_formats
from kldcloud.qad.pair import load_pair
from kldcloud.qad.torch_model import load_model
from kldcloud.spec.qad_job import TrainSpec
from tests.qad.small_training import tiny_nvfp4, tiny_teacher

TOKENS = torch.arange(24)[None]
UP = "model.layers.1.mlp.up_proj"
Weights = Mapping[str, torch.Tensor]


@pytest.fixture(scope="module", params=RUN_BY_LLAMA_CPP)
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tied = request.param == "qwen3"
    return tiny_teacher(tmp_path_factory.mktemp("teacher"), request.param, tied=tied)


@pytest.fixture(scope="module")
def init(teacher: Path) -> Path:
    return tiny_nvfp4(teacher)


@pytest.fixture(scope="module")
def trained(teacher: Path, init: Path) -> Weights:
    """Weights that are not the teacher's any more."""
    generator = torch.Generator().manual_seed(0)
    groups = load_pair(teacher, init, TrainSpec()).student.groups.values()
    return {
        name: (w + 0.2 * w.std() * torch.randn(w.shape, generator=generator)).detach()
        for group in groups
        for name, w in group.items()
    }


def matrices(weights: Weights) -> list[str]:
    return [name for name in weights if name.startswith("model.layers") and "norm" not in name]


def test_its_tensors_are_those_of_the_layout(
    teacher: Path, init: Path, trained: Weights, tmp_path: Path
) -> None:
    compared = export_hf(teacher, trained, tmp_path / "hf")
    export_gguf(init, trained, tmp_path / "student.gguf")
    student = dict(load_model(tmp_path / "student.gguf").named_parameters())
    assert compared == sum(each.numel() for each in student.values())
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    packed = stored[f"{UP}.weight_packed"].numpy()
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(512, 256)
    signed = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    assert stored[f"{UP}.weight_scale"].dtype == torch.float8_e4m3fn
    scale = (
        stored[f"{UP}.weight_scale"].double().numpy()
        / stored[f"{UP}.weight_global_scale"].double().numpy()
    )
    values = signed[codes] * scale.repeat(16, axis=1)
    exact = student[f"{UP}.weight"].detach().double().numpy()
    np.testing.assert_allclose(values, exact, rtol=1e-6, atol=0)
    gate = stored[f"{UP.replace('up_proj', 'gate_proj')}.weight_global_scale"]
    assert torch.equal(stored[f"{UP}.weight_global_scale"], gate)
    for name, tensor in stored.items():
        if name in student:
            assert torch.equal(tensor, student[name])
    rest = {name for name in student if name not in stored}
    assert len(rest) == 14
    parts = ("weight_packed", "weight_scale", "weight_global_scale")
    assert set(stored) - set(student) == {
        name.replace("weight", part) for name in rest for part in parts
    }


def test_compressed_tensors_and_transformers_read_the_student(
    teacher: Path, init: Path, trained: Weights, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    export_gguf(init, trained, tmp_path / "student.gguf")
    student = load_model(tmp_path / "student.gguf")
    export_hf(teacher, trained, tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert [type(theirs).__name__] == config["architectures"]
    with torch.no_grad():
        found, ours, far = (
            torch.log_softmax(each(TOKENS).logits.double(), -1)
            for each in (theirs, student, load_model(teacher))
        )
    for name, exact in student.named_parameters():
        read = theirs.get_parameter(name).float()
        torch.testing.assert_close(read, exact.detach(), rtol=2.0**-6, atol=0.0)

    def lost(p: torch.Tensor, q: torch.Tensor) -> float:
        return float((p.exp() * (p - q)).sum(-1).mean())

    assert lost(ours, found) < 0.1 * lost(far, found)


def test_compressed_tensors_rounds_activations_as_training_did(
    teacher: Path, trained: Weights, tmp_path: Path
) -> None:
    forward = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    from transformers import AutoModelForCausalLM

    export_hf(teacher, trained, tmp_path / "hf", dict.fromkeys(matrices(trained), 3.0))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.bfloat16)
    theirs(TOKENS)
    module = theirs.get_submodule(UP)
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(1)).clamp_(-3, 3)
    with torch.no_grad():
        args = module.quantization_scheme.input_activations
        found = forward.forward_quantize(module, x, "input", args)
    ours = input_formats({"x": 3.0}, "cpu")["x"].fake_quantize(x)
    # It divides where training multiplies: a few values lie on the other side of a tie.
    same = torch.isclose(found.float(), ours, rtol=2.0**-7)
    assert same.float().mean() > 0.99
    assert not torch.isclose(found.float(), x, rtol=2.0**-7).all()


def test_activations_have_a_scale_for_each_matrix(
    teacher: Path, trained: Weights, tmp_path: Path
) -> None:
    inputs = {f"{UP}.weight": 3.0}
    export_hf(teacher, trained, tmp_path / "hf", inputs)
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    assert stored[f"{UP}.input_global_scale"].tolist() == pytest.approx([6 * 448 / 3])
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    group = config["quantization_config"]["config_groups"]["group_0"]
    assert group["input_activations"]["dynamic"] == "local"
    assert (config["dtype"], config["use_cache"]) == ("bfloat16", True)


def test_norms_alone_leave_the_teacher_rounded(
    teacher: Path, init: Path, trained: Weights, tmp_path: Path
) -> None:
    norms = {name: each for name, each in trained.items() if "norm" in name}
    export_hf(teacher, norms, tmp_path / "hf")
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    assert torch.equal(stored["model.norm.weight"], norms["model.norm.weight"])
    rounded = dict(load_model(init).named_parameters())[f"{UP}.weight"]
    top = rounded.abs().max().item()
    whole = stored[f"{UP}.weight_scale"].float() / stored[f"{UP}.weight_global_scale"]
    assert float(whole.max()) * 6 == pytest.approx(top, rel=0.34)


def test_what_was_not_trained_is_not_written(
    teacher: Path, trained: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FormatError, match=r"has no parameter model\.nothing"):
        export_hf(teacher, {"model.nothing": torch.ones(1)}, tmp_path / "hf")
    broken = {**trained, f"{UP}.weight": torch.full((512, 256), float("nan"))}
    with pytest.raises(EngineError, match="not a finite"):
        export_hf(teacher, broken, tmp_path / "hf")

    def other(tensors: dict[str, torch.Tensor], path: Path, **more: object) -> None:
        tensors[f"{UP}.weight_packed"][7, 3] ^= 1
        save_file(tensors, path, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(hf_folder, "save_file", other)
    with pytest.raises(FormatError, match=r"up_proj\.weight does not hold what was trained"):
        export_hf(teacher, trained, tmp_path / "hf")
    assert not any((tmp_path / "hf").iterdir())


def test_a_copy_has_the_same_files_or_is_refused(
    teacher: Path, trained: Weights, tmp_path: Path
) -> None:
    export_hf(teacher, trained, tmp_path / "hf")
    copy_files([tmp_path / "hf" / name for name in FILES], tmp_path / "a" / "copy")
    for each in (tmp_path / "hf").iterdir():
        assert (tmp_path / "a" / "copy" / each.name).read_bytes() == each.read_bytes()
    with pytest.raises(StoreError, match="cannot be written"):
        copy_files([tmp_path / "hf" / name for name in FILES], teacher)
