"""Frozen grids: the bits of ggml's dequantisation, an exact way back, and the nearest value."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch

from kldcloud.errors import EngineError, FormatError, UserError
from kldcloud.models.gguf_header import read_gguf_header, read_tensor_bytes
from kldcloud.models.quantize import quantized
from kldcloud.qad.formats.blocks import BLOCK_TYPES, BlockType, Scales
from kldcloud.qad.formats.grid import Grid, _frozen
from kldcloud.store.digest import sha256_file
from tests.qad.formats.ggml import (
    SMOLLM2,
    dequantize,
    dequantize_with_gguf_py,
    quantize,
    real_weights,
)

TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
ROWS, COLUMNS = 48, 768

# Where ggml-common.h puts what is no code: the float16 numbers, and the bytes of smaller scales.
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
SCALE_BYTES = {
    "Q4_0": (0, 2),
    "Q4_1": (0, 4),
    "Q5_0": (0, 2),
    "Q5_1": (0, 4),
    "Q8_0": (0, 2),
    "Q4_K": (0, 16),
    "Q5_K": (0, 16),
    "Q6_K": (192, 210),
}
ODD_HALVES = (0.0, -0.0, 6e-8, -6e-8, 6e-5, 65504.0, -65504.0, -0.75)


def odd_blocks(name: str) -> npt.NDArray[np.uint8]:
    """Random bytes, finite scales that no quantiser writes among them."""
    rng = np.random.default_rng(TYPES.index(name))
    kind = BLOCK_TYPES[name]
    blocks = rng.integers(0, 256, (ROWS * COLUMNS // kind.elements, kind.nbytes), np.uint8)
    for start in HALVES.get(name, (0,)):
        half = blocks[:, start : start + 2].copy().view(np.float16)[:, 0]
        half[~np.isfinite(half)] = -2.5
        odd = rng.random(len(half)) < 0.3
        half[odd] = rng.choice(np.array(ODD_HALVES, np.float16), int(odd.sum()))
        blocks[:, start : start + 2] = half[:, None].view(np.uint8)
    return blocks.reshape(-1)


def bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    return np.ascontiguousarray(values).view(np.uint32)


def near(grid: Grid, seed: int) -> torch.Tensor:
    """Weights around the init's, some of them far beyond the grid's ends."""
    generator = torch.Generator().manual_seed(seed)
    init = grid.dequantize()
    noise = torch.randn(init.shape, generator=generator)
    far = torch.randn(init.shape, generator=generator).pow(7)
    return init * (1 + 0.3 * noise) + init.abs().mean() * 0.1 * far


@pytest.mark.parametrize("name", TYPES)
def test_any_blocks_dequantise_to_ggmls_bits_and_pack_back_to_themselves(name: str) -> None:
    data = odd_blocks(name)
    grid = Grid.from_bytes(name, data, (ROWS, COLUMNS))
    values = grid.dequantize()
    assert values.dtype == torch.float32
    peer = dequantize_with_gguf_py(name, data, (ROWS, COLUMNS))
    np.testing.assert_array_equal(bits(values.numpy()), bits(peer))
    np.testing.assert_array_equal(bits(values.numpy().reshape(-1)), bits(dequantize(name, data)))
    assert torch.equal(grid.fake_quantize(values), values)
    np.testing.assert_array_equal(grid.pack(values), data)


@pytest.mark.parametrize("name", TYPES)
def test_a_real_tensor_dequantises_to_ggmls_bits_and_packs_back_to_itself(name: str) -> None:
    weights = real_weights()
    data = quantize(name, weights)
    grid = Grid.from_bytes(name, data, weights.shape)
    peer = dequantize_with_gguf_py(name, data, weights.shape)
    np.testing.assert_array_equal(bits(grid.dequantize().numpy()), bits(peer))
    np.testing.assert_array_equal(grid.pack(grid.dequantize()), data)


@pytest.mark.parametrize("source", ["odd", "real"])
@pytest.mark.parametrize("name", TYPES)
def test_the_export_dequantises_to_what_training_saw(name: str, source: str) -> None:
    weights = real_weights()
    data, shape = (
        (odd_blocks(name), (ROWS, COLUMNS))
        if source == "odd"
        else (quantize(name, weights), weights.shape)
    )
    grid = Grid.from_bytes(name, data, shape)
    w = near(grid, 3)
    packed = grid.pack(w)
    exported = dequantize_with_gguf_py(name, packed, shape)
    np.testing.assert_array_equal(exported, grid.fake_quantize(w).numpy())
    changed = (exported != dequantize_with_gguf_py(name, data, shape)).mean()
    assert changed > 0.3
    start, stop = SCALE_BYTES[name]
    size = BLOCK_TYPES[name].nbytes
    old, new = data.reshape(-1, size), packed.reshape(-1, size)
    np.testing.assert_array_equal(new[:, start:stop], old[:, start:stop])


def all_values(kind: BlockType, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Every value that a weight could have: the same blocks dequantised once a code.

    Returns:
        float64 ``[codes, weights]``.
    """
    every = []
    for code in range(kind.lowest, kind.highest + 1):
        blocks = data.reshape(-1, kind.nbytes).copy()
        kind.write_codes(blocks, np.full((len(blocks), kind.elements), code, np.int8))
        every.append(dequantize(kind.name, blocks.reshape(-1)).astype(np.float64))
    return np.stack(every)


@pytest.mark.parametrize("source", ["odd", "real"])
@pytest.mark.parametrize("name", TYPES)
def test_no_code_has_a_nearer_value(name: str, source: str) -> None:
    kind = BLOCK_TYPES[name]
    weights = real_weights()[:8, :768]
    data, shape = (
        (odd_blocks(name)[: 8 * COLUMNS // kind.elements * kind.nbytes], (8, COLUMNS))
        if source == "odd"
        else (quantize(name, weights), weights.shape)
    )
    grid = Grid.from_bytes(name, data, shape)
    w = near(grid, 5)
    every = all_values(kind, data)
    assert len(np.unique(every[:, 0])) > 8 or source == "odd"
    exact = w.numpy().astype(np.float64).reshape(-1)
    chosen = np.abs(grid.fake_quantize(w).numpy().reshape(-1) - exact)
    best = np.abs(every - exact).min(axis=0)
    # What float32 can lose between the weight and the group's values, which are the larger here.
    rounding = 2.0**-21 * (np.abs(every).max(axis=0) + best)
    assert (chosen <= best + rounding).all()
    if source == "real":
        assert (chosen == best).mean() > 0.9999


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("base", [2.0**23, -(2.0**23), 2.0**23 + 640])
def test_every_step_beside_a_large_base_keeps_the_grids_values(base: float, sign: int) -> None:
    """A step is a float16 times a 6-bit factor: all significands, at all sizes that matter.

    Floats just above the base lie 1 apart here, so steps from far below to far above that spacing
    are gone through; 2^23 is also where the spacing changes.
    """
    significands = np.unique(np.outer(np.arange(1024, 2048), np.arange(1, 64)))
    kind = BLOCK_TYPES["Q5_K"]
    codes = torch.arange(32, dtype=torch.float32).expand(len(significands), 32)
    for exponent in range(-24, -9):
        steps = sign * np.ldexp(significands.astype(np.float32), exponent)[:, None]
        scales = _frozen(Scales(steps, np.full_like(steps, base)))
        values = scales.values(codes.clone())
        assert torch.equal(scales.values(scales.nearest(values, kind)), values)


def test_the_inits_code_stays_where_several_codes_have_its_value() -> None:
    """A zero step: all codes mean zero, and a quantiser may have left any of them there."""
    data = np.random.default_rng(0).integers(0, 256, (8, 210), np.uint8)
    data[:4, 208:] = 0
    data[4:, 192:208] = 0
    grid = Grid.from_bytes("Q6_K", data.reshape(-1), (8, 256))
    w = torch.randn(8, 256)
    assert not grid.dequantize().any()
    assert not grid.codes(w).any()
    np.testing.assert_array_equal(grid.pack(w), data.reshape(-1))


@pytest.mark.parametrize("name", TYPES)
def test_the_gradient_passes_straight_through(name: str) -> None:
    grid = Grid.from_bytes(name, odd_blocks(name), (ROWS, COLUMNS))
    w = (near(grid, 1) * 3).requires_grad_()
    weight = torch.randn(w.shape)
    (grid.fake_quantize(w) * weight).sum().backward()
    assert w.grad is not None
    assert torch.equal(w.grad, weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_latents_of_sixteen_bits_are_rounded_in_float32(dtype: torch.dtype) -> None:
    weights = real_weights()
    grid = Grid.from_bytes("Q4_K", quantize("Q4_K", weights), weights.shape)
    short = torch.from_numpy(weights).to(dtype).requires_grad_()
    values = grid.fake_quantize(short)
    assert values.dtype == torch.float32
    assert torch.equal(values, grid.fake_quantize(short.detach().float()))
    np.testing.assert_array_equal(grid.pack(short), grid.pack(short.detach().float()))
    values.backward(torch.full_like(values, 0.1))
    assert short.grad is not None
    assert short.grad.dtype == dtype


def test_the_weights_are_left_as_they_are_whatever_their_strides() -> None:
    weights = torch.from_numpy(real_weights())
    grid = Grid.from_bytes("Q5_1", quantize("Q5_1", real_weights()), tuple(weights.shape))
    across = weights.T.contiguous().T
    before = across.clone()
    assert torch.equal(grid.fake_quantize(across), grid.fake_quantize(weights))
    assert torch.equal(across, before)


def test_codes_are_what_the_file_holds() -> None:
    weights = real_weights()
    data = quantize("Q8_0", weights)
    grid = Grid.from_bytes("Q8_0", data, weights.shape)
    stored = data.reshape(-1, 34)[:, 2:].view(np.int8).reshape(weights.shape)
    codes = grid.codes(grid.dequantize())
    assert codes.dtype == torch.int8
    np.testing.assert_array_equal(codes.numpy(), stored)


@pytest.mark.parametrize("name", ["Q4_1", "Q6_K"])
def test_a_model_with_its_rows_in_another_order_gets_the_files_bytes(name: str) -> None:
    data = odd_blocks(name)
    grid = Grid.from_bytes(name, data, (ROWS, COLUMNS))
    # As transformers stores llama's q and k: halves of a head instead of pairs.
    order = np.arange(ROWS).reshape(4, ROWS // 8, 2).swapaxes(1, 2).reshape(-1)
    model = grid.permuted(order)
    assert torch.equal(model.dequantize(), grid.dequantize()[torch.from_numpy(order)])
    w = near(grid, 9)
    mixed = w[torch.from_numpy(order)]
    assert torch.equal(model.fake_quantize(mixed), grid.fake_quantize(w)[torch.from_numpy(order)])
    np.testing.assert_array_equal(model.pack(mixed), grid.pack(w))
    twice = model.permuted(order)
    assert torch.equal(twice.dequantize(), model.dequantize()[torch.from_numpy(order)])
    np.testing.assert_array_equal(twice.pack(twice.dequantize()), data)


@pytest.mark.parametrize("order", [[0, 0, 1], [0, 1], [0, 1, 3], [[0, 1, 2]]])
def test_an_order_that_is_none_is_refused(order: list[int]) -> None:
    grid = Grid.from_bytes("Q4_0", np.zeros(54, np.uint8), (3, 32))
    with pytest.raises(UserError, match="no order of the 3 rows"):
        grid.permuted(order)


def test_the_init_is_mapped_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "blocks"
    odd_blocks("Q4_K").tofile(path)
    data = np.memmap(path, np.uint8, "r")
    grid = Grid.from_bytes("Q4_K", data, (ROWS, COLUMNS))
    assert np.shares_memory(grid.blocks, data)
    assert np.shares_memory(grid.permuted(np.arange(ROWS)[::-1]).to("cpu").blocks, data)
    np.testing.assert_array_equal(grid.pack(grid.dequantize()), data)
    scales = grid.scales
    assert scales.base is not None
    held = sum(part.nbytes for part in (scales.step, scales.inverse, scales.base))
    assert held <= ROWS * COLUMNS * 12 / 32


def test_large_tensors_are_packed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    data = odd_blocks("Q5_K")
    whole = Grid.from_bytes("Q5_K", data, (ROWS, COLUMNS))
    w = near(whole, 2)
    values, packed = whole.dequantize(), whole.pack(w)
    for limit in (1, 5 * COLUMNS):
        monkeypatch.setattr("kldcloud.qad.formats.grid._CODES_AT_ONCE", limit)
        assert torch.equal(whole.dequantize(), values)
        np.testing.assert_array_equal(whole.pack(w), packed)


def test_other_types_are_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"type IQ4_XS cannot .* Q4_0, Q4_1, .*, Q6_K$"):
        Grid.from_bytes("IQ4_XS", np.zeros(136, np.uint8), (1, 256))


@pytest.mark.parametrize(
    ("shape", "nbytes", "said"),
    [
        ((2, 256), 287, "has 288 bytes, not 287"),
        ((2, 256), 0, "has 288 bytes, not 0"),
        ((1 << 40, 256), 288, "has 158,329,674,399,744 bytes, not 288"),
        ((2, 128), 288, "whole blocks of 256"),
        ((0, 256), 0, "whole blocks of 256"),
        ((-2, -256), 288, "whole blocks of 256"),
    ],
)
def test_bytes_that_do_not_fit_the_shape_are_refused(
    shape: tuple[int, int], nbytes: int, said: str
) -> None:
    with pytest.raises(FormatError, match=said):
        Grid.from_bytes("Q4_K", np.zeros(nbytes, np.uint8), shape)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", TYPES)
def test_a_scale_that_is_not_finite_is_refused(name: str, bad: float) -> None:
    for start in HALVES.get(name, (0,)):
        data = odd_blocks(name)
        data[start : start + 2] = np.array([bad], np.float16).view(np.uint8)
        with pytest.raises(FormatError, match="not finite"):
            Grid.from_bytes(name, data, (ROWS, COLUMNS))


def test_weights_that_do_not_fit_are_refused() -> None:
    grid = Grid.from_bytes("Q4_0", np.zeros(36, np.uint8), (2, 32))
    with pytest.raises(UserError, match=r"shape \(1, 64\) do not fit a grid of \(2, 32\)"):
        grid.fake_quantize(torch.zeros(1, 64))
    with pytest.raises(UserError, match=r"torch\.float64"):
        grid.fake_quantize(torch.zeros(2, 32, dtype=torch.float64))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_diverged_weight_is_not_packed(bad: float) -> None:
    grid = Grid.from_bytes("Q4_0", np.zeros(36, np.uint8), (2, 32))
    w = torch.zeros(2, 32)
    w[1, 3] = bad
    with pytest.raises(EngineError, match="not a finite number; training has diverged"):
        grid.pack(w)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", TYPES)
def test_a_gpu_gives_the_same_bits(name: str) -> None:
    grid = Grid.from_bytes(name, odd_blocks(name), (ROWS, COLUMNS))
    there = grid.to("cuda")
    w = near(grid, 4)
    assert there.device.type == "cuda"
    assert torch.equal(there.dequantize().cpu(), grid.dequantize())
    values = there.fake_quantize(w.cuda()).cpu()
    np.testing.assert_array_equal(bits(values.numpy()), bits(grid.fake_quantize(w).numpy()))
    np.testing.assert_array_equal(there.pack(w.cuda()), grid.pack(w))


def test_all_types_that_llama_cpp_mixes_have_a_grid() -> None:
    assert tuple(BLOCK_TYPES) == TYPES
    for name, kind in BLOCK_TYPES.items():
        sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        assert (kind.elements, kind.nbytes) == sizes


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["Q4_0", "Q4_K_M", "Q5_K_M", "Q5_1", "Q8_0"])
def test_every_tensor_of_a_llama_quantize_file_comes_back(
    quant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path))
    path = quantized(SMOLLM2, sha256_file(SMOLLM2), quant)
    types = set()
    for info in read_gguf_header(path).tensors.values():
        if info.type_name == "F32":
            continue
        types.add(info.type_name)
        data, shape = read_tensor_bytes(path, info), (info.shape[1], info.shape[0])
        grid = Grid.from_bytes(info.type_name, data, shape)
        values = grid.dequantize()
        peer = dequantize_with_gguf_py(info.type_name, data, shape)
        np.testing.assert_array_equal(bits(values.numpy()), bits(peer))
        np.testing.assert_array_equal(grid.pack(values), data)
        assert torch.equal(grid.fake_quantize(values), values)
    if quant == "Q4_K_M":
        assert types == {"Q4_K", "Q5_0", "Q6_K", "Q8_0"}
