"""Dequantising: every bit as ggml has it, for blocks of any content and for its own files."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from kldcloud.errors import FormatError
from kldcloud.models import dequantize as module
from kldcloud.models.dequantize import DEQUANTIZED, dequantize
from kldcloud.models.ggml_types import GGML_TYPES
from kldcloud.models.gguf_header import read_gguf_header, read_tensor_bytes
from kldcloud.models.quantize import quantized
from kldcloud.store.digest import sha256_file
from tests.qad.tiny_architectures import TinyShape, tiny_model

LAYOUTS = {kind.name: kind for kind in GGML_TYPES.values()}
# Where the half-precision scales of a block lie.
SCALES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


def random_blocks(type_name: str, count: int) -> npt.NDArray[np.uint8]:
    """Blocks of random bytes whose scales are finite, negative and subnormal ones among them."""
    rng = np.random.default_rng(len(type_name))
    width = LAYOUTS[type_name].block_bytes
    if type_name in SCALES:
        blocks = rng.integers(0, 256, (count, width), dtype=np.uint8)
        for offset in SCALES[type_name]:
            scale = rng.standard_normal(count) * 10.0 ** rng.uniform(-8, 3, count)
            blocks[:, offset : offset + 2] = scale.astype("<f2")[:, None].view(np.uint8)
        return blocks.reshape(-1)
    if type_name == "NVFP4":  # every code of a scale is one that ggml reads
        return rng.integers(0, 256, count * width, dtype=np.uint8)
    numbers = rng.standard_normal(count) * 10.0 ** rng.uniform(-8, 4, count)
    if type_name == "BF16":
        return (numbers.astype("<f4").view("<u4") >> 16).astype("<u2").view(np.uint8)
    return numbers.astype({"F32": "<f4", "F16": "<f2"}[type_name]).view(np.uint8)


@pytest.mark.parametrize("type_name", DEQUANTIZED)
def test_any_block_gives_the_bits_of_gguf_py(type_name: str) -> None:
    data = random_blocks(type_name, 1000)
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[type_name])
    assert np.array_equal(dequantize(data, type_name).view("u4"), expected.reshape(-1).view("u4"))


@pytest.mark.parametrize("type_name", ["Q6_K", "Q4_0", "F32"])
def test_portions_join_without_a_seam(type_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random_blocks(type_name, 37)
    whole = dequantize(data, type_name)
    monkeypatch.setattr(module, "_PORTION", 5 * LAYOUTS[type_name].block_elements)
    assert np.array_equal(dequantize(data, type_name), whole)


def test_the_result_is_the_callers_own_memory() -> None:
    data = np.zeros(16, np.uint8)
    dequantize(data, "F32")[0] = 1
    assert not data.any()


def test_another_type_is_refused_by_name() -> None:
    with pytest.raises(FormatError, match="IQ4_XS") as caught:
        dequantize(np.zeros(136, np.uint8), "IQ4_XS")
    assert "Q4_K" in str(caught.value)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = TinyShape("qwen3", layers=2)
    return tiny_model(tmp_path_factory.mktemp("source") / "source.gguf", shape)


@pytest.mark.parametrize(
    "quant", ["BF16", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K_M", "Q5_K_S", "Q6_K"]
)
def test_files_of_llama_cpp_give_the_bits_of_its_own_dequantisation(
    source: Path, quant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path))
    small = quantized(source, sha256_file(source), quant)
    wide = quantized(small, sha256_file(small), "F32")
    ours, theirs = read_gguf_header(small), read_gguf_header(wide)
    kinds = {tensor.type_name for tensor in ours.tensors.values()}
    assert quant.removesuffix("_S").removesuffix("_M") in kinds
    for name, tensor in ours.tensors.items():
        values = dequantize(read_tensor_bytes(small, tensor), tensor.type_name)
        expected = read_tensor_bytes(wide, theirs.tensors[name]).view("<u4")
        assert theirs.tensors[name].type_name == "F32"
        assert np.array_equal(values.view("u4"), expected), name
