"""Checkpoints that were quantised elsewhere, as transformers loads them: the values that they hold.

Each is compared with a folder that has the same values written out in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kldcloud.corpus.chunks import ChunkShape
from kldcloud.divergence.base_rows import LogitRows
from kldcloud.divergence.kernel import TokenStatistics, token_statistics
from kldcloud.models.engines import load_engine
from kldcloud.models.model_folder import read_model_folder
from kldcloud.models.transformers_options import TransformersOptions
from kldcloud.qad.export import export_gguf
from kldcloud.qad.hf_folder import export_hf
from kldcloud.qad.pair import load_pair
from kldcloud.spec.qad_job import TrainSpec
from tests.model_folders import folder_of, write_tokenizer
from tests.qad.small_training import tiny_nvfp4, tiny_teacher
from tests.quantised_folders import (
    Maker,
    Tensors,
    both,
    fp8_blocks,
    int4_groups,
    int8_rows,
    rewritten,
)

pytest.importorskip("compressed_tensors")

CONTEXT = 64
TOKENS = np.random.default_rng(0).integers(3, 320, CONTEXT).astype(np.int32)
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64, "symmetric": True}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
BLOCKS = {
    "num_bits": 8,
    "type": "float",
    "strategy": "block",
    "block_structure": [128, 128],
    "symmetric": True,
}
EACH_TOKEN = {"num_bits": 8, "strategy": "token", "symmetric": True, "dynamic": True}
EACH_GROUP = EACH_TOKEN | {"type": "float", "strategy": "group", "group_size": 128}


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


def described(
    form: str, weights: Mapping[str, Any], activations: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A quantization_config of compressed-tensors."""
    scheme = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": scheme},
    }


def compared(base: Path, candidate: Path, dtype: str = "float32") -> TokenStatistics:
    logits = []
    for path, each in ((base, "float32"), (candidate, dtype)):
        engine = load_engine(path, CONTEXT, TransformersOptions(each))
        logits.append(engine.evaluate(TOKENS).logits.copy())
        engine.close()
    return token_statistics(
        LogitRows(logits[0]), logits[1], ChunkShape(CONTEXT).next_tokens(TOKENS)
    )


@pytest.mark.parametrize(
    ("maker", "settings"),
    [
        pytest.param(
            fp8,
            described("float-quantized", INT8 | {"type": "float"}),
            id="fp8-rows",
        ),
        pytest.param(
            partial(fp8_blocks, suffix="_scale"),
            described("float-quantized", BLOCKS),
            id="fp8-blocks",
        ),
        pytest.param(
            partial(int4_groups, asymmetric=False),
            described("pack-quantized", INT4),
            id="int4",
        ),
        pytest.param(
            partial(int4_groups, asymmetric=True),
            described("pack-quantized", INT4 | {"symmetric": False}),
            id="int4-asymmetric",
        ),
    ],
)
def test_a_checkpoint_runs_with_the_values_that_it_holds(
    folder: Path, tmp_path: Path, maker: Maker, settings: Mapping[str, Any]
) -> None:
    quantised, exact = both(folder, tmp_path, maker, settings)
    assert read_model_folder(quantised).quantization == "compressed-tensors"
    assert compared(exact, quantised).kld.max() < 1e-9
    assert compared(folder, quantised).kld.mean() > 1e-6


def rounded_to_int8(states: torch.Tensor) -> torch.Tensor:
    """A token's states in 256 steps, as compressed-tensors spreads them."""
    scale = states.abs().amax(-1, keepdim=True) / 127.5
    return torch.round(states / scale).clamp(-128, 127) * scale


def rounded_to_fp8(states: torch.Tensor) -> torch.Tensor:
    """A token's states in E4M3, each 128 of them with a scale."""
    groups = states.unflatten(-1, (-1, 128))
    scale = groups.abs().amax(-1, keepdim=True) / 448
    return ((groups / scale).to(torch.float8_e4m3fn).float() * scale).flatten(-2)


@pytest.mark.parametrize(
    ("maker", "settings", "rounded"),
    [
        pytest.param(
            int8_rows,
            described("int-quantized", INT8, EACH_TOKEN | {"type": "int"}),
            rounded_to_int8,
            id="w8a8-int8",
        ),
        pytest.param(
            partial(fp8_blocks, suffix="_scale"),
            described("float-quantized", BLOCKS, EACH_GROUP),
            rounded_to_fp8,
            id="w8a8-fp8-blocks",
        ),
    ],
)
def test_activations_are_rounded_where_the_configuration_says_so(
    folder: Path,
    tmp_path: Path,
    maker: Maker,
    settings: Mapping[str, Any],
    rounded: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    quantised, exact = both(folder, tmp_path, maker, settings)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(exact, dtype=torch.float32).eval()
    for name, layer in model.named_modules():
        if ".layers." in name and isinstance(layer, torch.nn.Linear):
            layer.register_forward_pre_hook(lambda _, given: (rounded(given[0]),))
    tokens = torch.from_numpy(TOKENS.astype(np.int64))[None]
    with torch.inference_mode():
        wanted = model(tokens).logits[0, CONTEXT // 2 : CONTEXT - 1].numpy()
    engine = load_engine(quantised, CONTEXT, TransformersOptions("float32"))
    found = engine.evaluate(TOKENS).logits
    following = ChunkShape(CONTEXT).next_tokens(TOKENS)
    assert token_statistics(LogitRows(wanted), found, following).kld.max() < 1e-6
    assert compared(exact, quantised).kld.mean() > 1e-5


def nf4(stored: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """NF4 of bitsandbytes in blocks of 64: a byte's high bits first, codes of its own table."""
    octets = stored[name].flatten()
    codes = torch.stack([octets >> 4, octets & 15], 1).flatten().long()
    blocks = stored[f"{name}.quant_map"][codes].view(-1, 64)
    return (blocks * stored[f"{name}.absmax"][:, None]).flatten()


def test_a_4_bit_bitsandbytes_checkpoint_runs_near_the_values_that_it_holds(
    folder: Path, tmp_path: Path
) -> None:
    """Near: on CPUs with AVX-512 it multiplies in bfloat16."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=settings
    )
    quantised = folder_of_quantised(folder, tmp_path / "quantised", model)
    stored = load_file(quantised / "model.safetensors")
    exact = rewritten(
        folder, tmp_path / "exact", lambda name, each: {name: nf4(stored, name).view(each.shape)}
    )
    found = compared(exact, quantised).kld.mean()
    assert found < 1e-3
    assert found < compared(folder, quantised).kld.mean() / 20


def test_a_torchao_checkpoint_runs_with_the_values_that_it_holds(
    folder: Path, tmp_path: Path
) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import AutoModelForCausalLM, TorchAoConfig

    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=TorchAoConfig(quantization.Int8WeightOnlyConfig()),
    )
    quantised = folder_of_quantised(folder, tmp_path / "quantised", model)
    stored = load_file(quantised / "model.safetensors")

    def meaning(name: str, _: torch.Tensor) -> Tensors:
        layer = name.removesuffix("weight")
        codes, scale = stored[f"{layer}_weight_qdata"], stored[f"{layer}_weight_scale"]
        return {name: codes.float() * scale.view(-1, 1)}

    exact = rewritten(folder, tmp_path / "exact", meaning)
    assert compared(exact, quantised).kld.max() < 1e-9
    assert compared(folder, quantised).kld.mean() > 1e-6


def folder_of_quantised(folder: Path, target: Path, model: Any) -> Path:
    """What save_pretrained makes of a model, with the tokenizer of the one that it is of."""
    model.save_pretrained(target)
    for path in folder.glob("tokenizer*"):
        (target / path.name).write_bytes(path.read_bytes())
    return target


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
