"""What Model Optimizer exports as a GGUF: its exporter's own files, and the layout's letter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kldcloud.errors import FormatError
from kldcloud.qad.architectures import map_model
from kldcloud.qad.formats import nvfp4
from kldcloud.qad.modelopt.exported import published_files, student_gguf
from kldcloud.qad.nvfp4_file import RUN_BY_LLAMA_CPP
from kldcloud.qad.nvfp4_layers import fused_groups
from kldcloud.qad.torch_model import load_model, read_parameter
from tests.qad.modelopt.make_golden import GOLDEN, golden_teacher
from tests.qad.modelopt.their_layout import (
    dequantized,
    packed,
    their_tensors,
    write_their_folder,
)
from tests.qad.small_training import tiny_nvfp4, tiny_teacher

Tensors = dict[str, torch.Tensor]
DOWN = "model.layers.0.mlp.down_proj.weight"
NORM = "model.norm.weight"


def weights_of(teacher: Path) -> dict[str, Any]:
    model = map_model(teacher)
    return {name: read_parameter(model, each) for name, each in model.parameters.items()}


def read(path: Path) -> Mapping[str, torch.Tensor]:
    return {name: each.detach() for name, each in load_model(path).named_parameters()}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_teacher(tmp_path_factory.mktemp("teacher"), layers=1, feed_forward=256)


@pytest.fixture(scope="module")
def init(teacher: Path) -> Path:
    return tiny_nvfp4(teacher)


@pytest.fixture(scope="module")
def tensors(teacher: Path) -> Tensors:
    """Of a student that has moved, but for what stays."""
    rng = np.random.default_rng(3)
    weights = {
        name: each
        if name.endswith(("embed_tokens.weight", "lm_head.weight"))
        else (each * rng.uniform(0.8, 1.2, each.shape)).astype(np.float32)
        for name, each in weights_of(teacher).items()
    }
    return their_tensors(weights, activations=False)


def test_the_folder_of_its_own_exporter_says_what_we_would_round_the_weights_to(
    tmp_path: Path,
) -> None:
    teacher = golden_teacher(tmp_path)
    init, student = tiny_nvfp4(teacher), tmp_path / "student.gguf"
    compared = student_gguf(init, GOLDEN, student, activations=True)
    found, model = read(student), map_model(teacher)
    half = {
        name: torch.from_numpy(read_parameter(model, each)).bfloat16().float()
        for name, each in model.parameters.items()
    }
    for names in fused_groups(model):
        scale = nvfp4.shared_scale(*(half[each] for each in names))
        for name in names:
            assert torch.equal(found[name], nvfp4.pack(half[name], scale).dequantize())
    assert torch.equal(found[NORM], half[NORM])
    head = "lm_head.weight"
    assert torch.equal(found[head], torch.from_numpy(read_parameter(model, model.parameters[head])))
    kept = {"model.embed_tokens.weight", head}
    assert compared == sum(each.numel() for name, each in found.items() if name not in kept)
    assert [each.name for each in published_files(GOLDEN)] == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("architecture", RUN_BY_LLAMA_CPP)
@pytest.mark.parametrize(("activations", "files"), [(False, 1), (True, 3)])
def test_a_folder_that_numpy_wrote_becomes_the_weights_that_numpy_reads(
    tmp_path: Path, architecture: str, activations: bool, files: int
) -> None:
    tied = architecture == "qwen3"
    teacher = tiny_teacher(tmp_path, architecture, layers=2, feed_forward=256, tied=tied)
    tensors = their_tensors(weights_of(teacher), activations=activations)
    write_their_folder(tmp_path / "x", tensors, activations=activations, files=files)
    student_gguf(tiny_nvfp4(teacher), tmp_path / "x", tmp_path / "s.gguf", activations=activations)
    for name, found in read(tmp_path / "s.gguf").items():
        if f"{name}_scale" not in tensors:
            continue
        scales = tensors[f"{name}_scale"].view(torch.uint8).numpy()
        whole = float(tensors[f"{name}_scale_2"])
        np.testing.assert_array_equal(
            found.numpy(), dequantized(tensors[name].numpy(), scales, whole)
        )
    names = [each.name for each in published_files(tmp_path / "x")]
    assert "tokenizer.json" not in names
    assert len([each for each in names if each.endswith(".safetensors")]) == files


def test_what_training_moved_is_in_the_gguf(init: Path, tensors: Tensors, tmp_path: Path) -> None:
    write_their_folder(tmp_path / "x", tensors, activations=False)
    student_gguf(init, tmp_path / "x", tmp_path / "s.gguf", activations=False)
    found, before = read(tmp_path / "s.gguf"), read(init)
    assert torch.equal(found[NORM], tensors[NORM].float())
    assert not torch.equal(found[NORM], before[NORM])
    moved = (found[DOWN] != before[DOWN]).float().mean()
    assert 0.2 < moved < 1
    assert torch.equal(found["lm_head.weight"], before["lm_head.weight"])


def test_the_writer_of_these_tests_rounds_as_well_as_anybody() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((64, 256)).astype(np.float32)
    whole = np.float32(np.abs(matrix).max() / (6 * 448))
    theirs = dequantized(*packed(matrix, whole), float(whole))
    ours = nvfp4.pack(torch.from_numpy(matrix), torch.tensor(whole)).dequantize().numpy()
    assert np.mean(theirs != ours) < 1e-3
    lost = [float(np.mean((each - matrix) ** 2)) for each in (theirs, ours)]
    assert lost[0] == pytest.approx(lost[1], rel=1e-4)


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], None]:
    def harm(tensors: Tensors) -> None:
        tensors[name] = change(tensors[name])

    return harm


def not_a_number(scale: torch.Tensor) -> torch.Tensor:
    bits = scale.view(torch.uint8).clone()
    bits[1, 1] = 0x7F
    return bits.view(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda all_: all_.pop(f"{DOWN}_scale"), f"has no tensor '{DOWN}_scale'"),
        (lambda all_: all_.pop(NORM), f"has no tensor '{NORM}'"),
        (
            changed(DOWN, lambda w: w[:, :-8].contiguous()),
            r"is U8 \[256, 120\], not U8 \[256, 128\]",
        ),
        (changed(DOWN, lambda w: w.float()), r"is F32 \[256, 128\], not U8"),
        (changed(f"{DOWN}_scale", not_a_number), f"a scale of {DOWN} is not finite"),
        (changed(f"{DOWN}_scale", lambda s: -s.float()), "is F32"),
        (changed(f"{DOWN}_scale_2", lambda s: s * torch.nan), "is not finite, or below zero"),
        (changed(f"{DOWN}_scale_2", lambda s: -s), "is not finite, or below zero"),
        (changed(NORM, lambda w: w * torch.inf), f"a number of {NORM} is not finite"),
        (
            changed("model.embed_tokens.weight", lambda w: w * 1.1),
            "embed_tokens.weight is not the teacher's, which was to stay as it was",
        ),
        (
            lambda all_: all_.update(
                {"model.layers.0.mlp.down_proj.pre_quant_scale": torch.ones(2)}
            ),
            "pre_quant_scale', for which a GGUF has no place",
        ),
    ],
)
def test_a_folder_that_is_not_as_it_should_be_is_refused(
    init: Path,
    tensors: Tensors,
    tmp_path: Path,
    harm: Callable[[Tensors], object],
    reason: str,
) -> None:
    harmed = dict(tensors)
    harm(harmed)
    write_their_folder(tmp_path / "x", harmed, activations=False)
    with pytest.raises(FormatError, match=reason):
        student_gguf(init, tmp_path / "x", tmp_path / "s.gguf", activations=False)
    assert not (tmp_path / "s.gguf").exists()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "is no JSON object"),
        ("{}", "its quantization_config is not that of W4A16_NVFP4 in groups of 16"),
        ('{"quantization_config": {"config_groups": [1]}}', "not that of W4A16_NVFP4"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_a_configuration_of_something_else_is_refused(
    init: Path, tensors: Tensors, tmp_path: Path, config: str, reason: str
) -> None:
    write_their_folder(tmp_path / "x", tensors, activations=False)
    (tmp_path / "x" / "config.json").write_text(config)
    with pytest.raises(FormatError, match=reason):
        student_gguf(init, tmp_path / "x", tmp_path / "s.gguf", activations=False)


def test_an_export_by_the_other_recipe_is_refused(init: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not that of W4A16_NVFP4"):
        student_gguf(init, GOLDEN, tmp_path / "s.gguf", activations=False)


@pytest.mark.parametrize(
    "place", ["../model.safetensors", "/model.safetensors", "a/b.safetensors", "model.bin", 5]
)
def test_an_index_leads_nowhere_else(
    init: Path, tensors: Tensors, tmp_path: Path, place: object
) -> None:
    write_their_folder(tmp_path / "x", tensors, activations=False)
    index = tmp_path / "x" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {NORM: place}}))
    with pytest.raises(FormatError, match="does not say where tensors are"):
        student_gguf(init, tmp_path / "x", tmp_path / "s.gguf", activations=False)


def test_files_that_are_no_safetensors_are_refused(
    init: Path, tensors: Tensors, tmp_path: Path
) -> None:
    write_their_folder(tmp_path / "x", tensors, activations=False)
    weights = tmp_path / "x" / "model.safetensors"
    whole = weights.read_bytes()
    for content in (b"", whole[:100], whole[:-1], b"\xff" * 64):
        weights.write_bytes(content)
        with pytest.raises(FormatError, match="no safetensors"):
            student_gguf(init, tmp_path / "x", tmp_path / "s.gguf", activations=False)
    weights.unlink()
    with pytest.raises(FormatError, match="no safetensors"):
        student_gguf(init, tmp_path / "x", tmp_path / "s.gguf", activations=False)


def test_the_head_of_a_tied_model_may_be_there_twice(tmp_path: Path) -> None:
    teacher = tiny_teacher(tmp_path, "qwen3", layers=1, feed_forward=256, tied=True)
    init = tiny_nvfp4(teacher)
    tensors = their_tensors(weights_of(teacher), activations=False)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    write_their_folder(tmp_path / "x", tensors, activations=False)
    student_gguf(init, tmp_path / "x", tmp_path / "s.gguf", activations=False)
    shutil.copytree(tmp_path / "x", tmp_path / "y")
    stored = load_file(tmp_path / "y" / "model.safetensors")
    stored["lm_head.weight"] *= 2
    save_file(stored, tmp_path / "y" / "model.safetensors")
    with pytest.raises(FormatError, match="lm_head"):
        student_gguf(init, tmp_path / "y", tmp_path / "t.gguf", activations=False)
