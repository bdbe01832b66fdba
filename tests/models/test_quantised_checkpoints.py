"""Checkpoints that were quantised elsewhere, as transformers loads them: the values that they hold.

Each is compared with a folder that has the same values written out in float32.
"""

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

from kldcloud.corpus.chunks import ChunkShape
from kldcloud.divergence.base_rows import LogitRows
from kldcloud.divergence.kernel import TokenStatistics, token_statistics
from kldcloud.errors import EngineError
from kldcloud.models.engines import load_engine
from kldcloud.models.model_folder import read_model_folder
from kldcloud.models.transformers_options import TransformersOptions
from kldcloud.qad.export import export_gguf
from kldcloud.qad.hf_folder import export_hf
from kldcloud.qad.pair import load_pair
from kldcloud.spec.qad_job import TrainSpec
from tests.model_folders import folder_of, write_tokenizer
from tests.qad.small_training import tiny_nvfp4, tiny_teacher

pytest.importorskip("compressed_tensors")

CONTEXT = 64
TOKENS = np.random.default_rng(0).integers(3, 320, CONTEXT).astype(np.int32)
Tensors = Mapping[str, torch.Tensor]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_teacher(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def folder(gguf: Path) -> Path:
    return folder_of(gguf, gguf.parent / "hf")


def fp8(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """A row's codes in E4M3 and its scale; and what they mean."""
    scale = weight.abs().amax(1, keepdim=True) / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return {name: codes, f"{name}_scale": scale}, codes.float() * scale


def rewritten(folder: Path, target: Path, convert: Callable[[str, torch.Tensor], Tensors]) -> Path:
    """The same model with the matrices of its layers written otherwise."""
    shutil.copytree(folder, target)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(target / "model.safetensors").items():
        layer = tensor.ndim == 2 and ".layers." in name
        tensors |= convert(name, tensor) if layer else {name: tensor.clone()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def declared(folder: Path, form: str, weights: Mapping[str, Any]) -> Path:
    """A folder whose configuration says how its weights are quantised."""
    path = folder / "config.json"
    groups = {"group_0": {"targets": ["Linear"], "weights": dict(weights)}}
    config = json.loads(path.read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": groups,
    }
    path.write_text(json.dumps(config))
    return folder


def compared(base: Path, candidate: Path, dtype: str = "float32") -> TokenStatistics:
    logits = []
    for path, each in ((base, "float32"), (candidate, dtype)):
        engine = load_engine(path, CONTEXT, TransformersOptions(each))
        logits.append(engine.evaluate(TOKENS).logits.copy())
        engine.close()
    return token_statistics(
        LogitRows(logits[0]), logits[1], ChunkShape(CONTEXT).next_tokens(TOKENS)
    )


def test_an_fp8_checkpoint_runs_with_the_values_that_it_holds(folder: Path, tmp_path: Path) -> None:
    quantised = rewritten(folder, tmp_path / "fp8", lambda name, each: fp8(name, each)[0])
    declared(
        quantised,
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
    )
    exact = rewritten(folder, tmp_path / "exact", lambda name, each: {name: fp8(name, each)[1]})
    assert read_model_folder(quantised).quantization == "compressed-tensors"
    assert compared(exact, quantised).kld.max() < 1e-9
    assert compared(folder, quantised).kld.mean() > 1e-3


def test_our_own_nvfp4_student_runs_as_its_gguf_does(gguf: Path, tmp_path: Path) -> None:
    init = tiny_nvfp4(gguf)
    groups = load_pair(gguf, init, TrainSpec()).student.groups.values()
    trained = {name: each.detach() for group in groups for name, each in group.items()}
    export_gguf(init, trained, tmp_path / "student.gguf")
    export_hf(gguf, trained, tmp_path / "hf")
    write_tokenizer(gguf, tmp_path / "hf")
    exact = folder_of(tmp_path / "student.gguf", tmp_path / "exact")
    # compressed-tensors unpacks these weights to bfloat16.
    assert compared(exact, tmp_path / "hf", "bfloat16").kld.mean() < 1e-3


def test_a_library_that_a_checkpoint_needs_is_named(folder: Path, tmp_path: Path) -> None:
    awq = tmp_path / "awq"
    shutil.copytree(folder, awq)
    path = awq / "config.json"
    settings = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    with pytest.raises(EngineError, match="transformers could not load it: ") as caught:
        load_engine(awq, CONTEXT, TransformersOptions("float32"))
    assert "\n" not in str(caught.value)
