"""NVFP4: the recipe in float64, ggml's reading of the blocks, compressed-tensors' of the rest."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from kldcloud.errors import EngineError, UserError
from kldcloud.qad.formats import nvfp4
from tests.qad.formats.ggml import dequantize, dequantize_with_gguf_py, real_weights

F8 = npt.NDArray[np.float64]

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
# Every non-negative E4M3 number in the order of its code: bias 7, no infinity, 0x7F is NaN.
E4M3 = np.array(
    [(c % 8) * 2.0**-9 if c < 8 else (8 + c % 8) * 2.0 ** (c // 8 - 10) for c in range(127)]
)


def nearest(table: F8, x: F8) -> npt.NDArray[np.int64]:
    """Index of the nearest entry; of two as near, the even one."""
    above = np.searchsorted(table, x).clip(1, len(table) - 1)
    low, high = x - table[above - 1], table[above] - x
    tie = np.where(above % 2 == 0, above, above - 1)
    return np.where(low < high, above - 1, np.where(high < low, above, tie))


def recipe(w: npt.NDArray[np.float32]) -> tuple[F8, F8, np.float32]:
    """Signed E2M1 numbers ``[blocks, 16]``, E4M3 numbers ``[blocks, 1]`` and the tensor scale."""
    tensor_scale = np.float32(np.abs(w).max() / np.float32(6 * 448))
    blocks = w.astype(np.float64).reshape(-1, 16)
    wanted = np.abs(blocks).max(axis=1, keepdims=True) / 6 / np.float64(tensor_scale)
    scale = E4M3[nearest(E4M3, wanted)]
    x = blocks / np.where(scale == 0, np.inf, scale * np.float64(tensor_scale))
    return np.copysign(E2M1[nearest(E2M1, np.abs(x))], x), scale, tensor_scale


def weights(kind: str) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(11)
    if kind == "real":
        return real_weights()[:, :768]
    w = rng.standard_normal((32, 256)).astype(np.float32)
    if kind == "wide":  # blocks whose scales reach down to E4M3's subnormals, and to zero
        w *= np.exp2(-rng.integers(0, 24, (32, 16)).repeat(16, axis=1)).astype(np.float32)
        w[3] = 0
    return w


KINDS = ("normal", "wide", "real")


@pytest.mark.parametrize("kind", KINDS)
def test_scales_and_codes_are_those_of_the_recipe_in_float64(kind: str) -> None:
    w = weights(kind)
    levels, scale, tensor_scale = recipe(w)
    packed = nvfp4.pack(torch.from_numpy(w))
    assert packed.tensor_scale.item() == tensor_scale
    found = packed.weight_scale.float().numpy().reshape(-1, 1)
    np.testing.assert_array_equal(found, scale)
    if kind == "wide":
        assert ((scale > 0) & (scale < 2.0**-6)).any()
        lost = (scale == 0)[:, 0] & (np.abs(w).reshape(-1, 16).max(axis=1) > 0)
        assert lost.any()
        assert not packed.weight_packed.numpy().reshape(-1, 8)[lost].any()
    values = nvfp4.fake_quantize(torch.from_numpy(w)).numpy()
    exact = (levels * scale).astype(np.float32) * tensor_scale
    np.testing.assert_array_equal(values.reshape(-1, 16), exact)


def test_ties_go_to_the_even_code() -> None:
    middles = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    x = torch.tensor([6.0, *middles, *(-m for m in middles), -6.0])
    rounded = nvfp4.fake_quantize_activations(x, torch.tensor(1.0))
    up = [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    assert rounded.tolist() == [6.0, *up, *(-m for m in up), -6.0]


@pytest.mark.parametrize("side", [-1, 1])
def test_beside_a_tie_the_nearer_number_is_taken(side: int) -> None:
    middles = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], np.float32)
    x = torch.zeros(16)
    x[0] = 6
    x[1:8] = torch.from_numpy(np.nextafter(middles, np.float32(10 * side)))
    rounded = nvfp4.fake_quantize_activations(x, torch.tensor(1.0))
    assert rounded[1:8].tolist() == (E2M1[1:] if side > 0 else E2M1[:-1]).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gguf_blocks_are_read_back_as_what_training_saw(kind: str) -> None:
    w = weights(kind)
    packed = nvfp4.pack(torch.from_numpy(w))
    values = nvfp4.fake_quantize(torch.from_numpy(w)).numpy()
    blocks = packed.gguf_blocks()
    assert blocks.nbytes == w.size // 64 * 36
    scale = packed.tensor_scale.numpy()
    peer = dequantize_with_gguf_py("NVFP4", blocks, w.shape) * scale
    np.testing.assert_array_equal(peer, values)
    np.testing.assert_array_equal(dequantize("NVFP4", blocks).reshape(w.shape) * scale, values)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_of_compressed_tensors_finds_the_weights(kind: str) -> None:
    """Its definition: low four bits first, and block scales divided by the global scale."""
    w = weights(kind)
    packed = nvfp4.pack(torch.from_numpy(w))
    assert packed.weight_packed.shape == (w.shape[0], w.shape[1] // 2)
    assert packed.weight_scale.shape == (w.shape[0], w.shape[1] // 16)
    assert packed.weight_scale.dtype == torch.float8_e4m3fn
    assert packed.weight_global_scale.shape == (1,)
    assert packed.weight_global_scale.dtype == torch.float32
    stored = packed.weight_packed.numpy()
    codes = np.empty(w.shape, np.uint8)
    codes[:, 0::2], codes[:, 1::2] = stored & 15, stored >> 4
    levels = np.where(codes & 8, -1, 1) * E2M1[codes & 7]
    scale = packed.weight_scale.float().numpy() / packed.weight_global_scale.numpy()
    read = levels.reshape(-1, 16) * scale.reshape(-1, 1)
    values = nvfp4.fake_quantize(torch.from_numpy(w)).numpy()
    np.testing.assert_allclose(read, values.reshape(-1, 16), rtol=3e-7, atol=0)
    wanted = 448 * 6 / np.abs(w).max()
    assert packed.weight_global_scale.item() == pytest.approx(float(wanted), rel=3e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_packing_gives_exactly_the_forward_pass(kind: str, dtype: torch.dtype) -> None:
    w = torch.from_numpy(weights(kind)).to(dtype)
    values = nvfp4.fake_quantize(w)
    assert values.dtype == torch.float32
    assert torch.equal(nvfp4.pack(w).dequantize(), values)
    assert torch.equal(nvfp4.fake_quantize(w.float()), values)


def test_the_gradient_passes_straight_through() -> None:
    w = torch.from_numpy(weights("wide")).to(torch.bfloat16).requires_grad_()
    weight = torch.randn(w.shape)
    (nvfp4.fake_quantize(w) * weight).sum().backward()
    assert w.grad is not None
    assert torch.equal(w.grad, weight.to(torch.bfloat16))


def test_activations_keep_their_type_and_shape_and_are_clipped_by_the_tensor_scale() -> None:
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    x[0, 0, 5] = 100.0
    scale = torch.tensor(0.0037)
    x.requires_grad_()
    seen = nvfp4.fake_quantize_activations(x, scale)
    assert seen.dtype == torch.bfloat16
    assert seen.shape == x.shape
    assert seen[0, 0, 5].item() == pytest.approx(6 * 448 * 0.0037, rel=2.0**-8)
    # Elsewhere: the recipe with this tensor scale, in float64.
    blocks = x.detach().double().numpy().reshape(-1, 16)[1:]
    wanted = np.abs(blocks).max(axis=1, keepdims=True) / 6 / scale.item()
    step = E4M3[nearest(E4M3, wanted)] * scale.item()
    exact = np.sign(blocks) * E2M1[nearest(E2M1, np.abs(blocks) / step)] * step
    np.testing.assert_allclose(
        seen.detach().double().numpy().reshape(-1, 16)[1:], exact, rtol=2.0**-8
    )
    seen.sum().backward()
    assert x.grad is not None
    assert (x.grad == 1).all()


@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-35])
def test_a_tensor_of_zeros_or_nearly_so_becomes_zero(size: float) -> None:
    w = torch.full((2, 64), size)
    packed = nvfp4.pack(w)
    assert packed.weight_global_scale.item() == 1.0
    assert not packed.gguf_blocks().any()
    assert not nvfp4.fake_quantize(w).any()


def test_rows_that_are_no_whole_blocks_are_refused() -> None:
    with pytest.raises(UserError, match=r"whole blocks of 16, not \(4, 24\)"):
        nvfp4.fake_quantize(torch.zeros(4, 24))
    with pytest.raises(UserError, match=r"whole blocks of 16, not \(0, 16\)"):
        nvfp4.fake_quantize_activations(torch.zeros(0, 16), torch.tensor(1.0))
    packed = nvfp4.pack(torch.ones(4, 48))
    with pytest.raises(UserError, match="rows of 48 weights are no whole NVFP4 blocks of 64"):
        packed.gguf_blocks()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_diverged_weight_is_not_packed(bad: float) -> None:
    w = torch.ones(2, 16)
    w[1, 3] = bad
    with pytest.raises(EngineError, match="not a finite number; training has diverged"):
        nvfp4.pack(w)
    assert torch.isnan(nvfp4.fake_quantize(w)).any()  # a loss shows it at once


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_gives_the_same_bytes(kind: str) -> None:
    w = torch.from_numpy(weights(kind))
    here, there = nvfp4.pack(w), nvfp4.pack(w.cuda())
    assert torch.equal(there.weight_packed.cpu(), here.weight_packed)
    assert torch.equal(
        there.weight_scale.cpu().view(torch.uint8), here.weight_scale.view(torch.uint8)
    )
    assert there.tensor_scale.item() == here.tensor_scale.item()
    assert torch.equal(nvfp4.fake_quantize(w.cuda()).cpu(), nvfp4.fake_quantize(w))
