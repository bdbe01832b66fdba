"""NVFP4 in plain torch, on CPU and GPU: blocks of 16 weights, an E4M3 scale each, E2M1 codes.

A weight is ``code * block scale * tensor scale``. Tensor scale: the largest magnitude of the tensor
over 6 * 448 (the largest E2M1 and E4M3 numbers), in float32; block scale: the block's largest
magnitude over 6 and over the tensor scale, rounded to E4M3. That is the recipe of NVIDIA's Model
Optimizer and of compressed-tensors. Matrices that an engine multiplies as one (queries, keys and
values; gate and up) can share the tensor scale of the largest weight of them all: vLLM has one for
the whole product.

All scales are derived again at each step. A block has 15 levels under its largest weight, so a
scale frozen at the start would clip that weight as soon as it grew; and an export writes all
scales anyway, so nothing is gained by keeping them. The trained weights thereby export to the same
bytes as quantising them once, after training.

The module itself is a `StudentFormat`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kldcloud.errors import UserError
from kldcloud.qad.formats.straight_through import refuse_diverged, straight_through

BLOCK = 16
"""Weights that share a scale."""
GGUF_BLOCK = 64
"""Weights of one block of ggml's type 40."""

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_LARGEST_CODE = 6.0
_LARGEST_SCALE = 448.0

_NEGLIGIBLE = 2.0**-100
"""A tensor below this everywhere counts as zero: its scale would leave float32's normal range."""


@dataclass(frozen=True, slots=True)
class PackedNvfp4:
    """One quantised matrix; fields and their layout as compressed-tensors has them in a file.

    Source: its format "nvfp4-pack-quantized" (``pack_fp4_to_uint8``, ``generate_gparam``).

    Attributes:
        weight_packed: uint8 ``[rows, columns / 2]``; the even column in the low four bits. A code
            is three bits of magnitude below a sign.
        weight_scale: float8_e4m3fn ``[rows, columns / 16]``, never negative.
        tensor_scale: float32 ``[]``, what a product is multiplied by: weight_scale_2 of Model
            Optimizer, and the tensor ``x.scale`` beside ``x.weight`` in a GGUF.
    """

    weight_packed: torch.Tensor
    weight_scale: torch.Tensor
    tensor_scale: torch.Tensor

    @property
    def weight_global_scale(self) -> torch.Tensor:
        """float32 ``[1]``: compressed-tensors divides by it, so it is the inverse tensor scale."""
        return self.tensor_scale.reciprocal().reshape(1)

    def dequantize(self) -> torch.Tensor:
        """The weights, float32 ``[rows, columns]``; rounded once, by the tensor scale."""
        signed = torch.tensor(_E2M1 + tuple(-level for level in _E2M1))
        codes = self._codes()
        values = signed.to(codes.device)[codes.int()]
        grouped = values.view(-1, BLOCK) * self.weight_scale.float().view(-1, 1)
        return grouped.mul_(self.tensor_scale).view(codes.shape)

    def gguf_blocks(self) -> npt.NDArray[np.uint8]:
        """The matrix as ggml's type 40 keeps it, without the tensor scale.

        A block of 64 weights has four E4M3 scales and then, for each, eight bytes: weight i of the
        sixteen in the low four bits of byte i, weight i + 8 in the high ones.

        Returns:
            uint8 ``[rows * columns / 64 * 36]``.

        Raises:
            UserError: a row does not consist of whole blocks of 64.
        """
        codes = self._codes()
        if codes.shape[1] % GGUF_BLOCK:
            raise UserError(
                f"rows of {codes.shape[1]:,} weights are no whole NVFP4 blocks of {GGUF_BLOCK}"
            )
        halves = codes.view(-1, 4, 2, 8)
        packed = (halves[:, :, 0] | halves[:, :, 1] << 4).view(-1, 32)
        scales = self.weight_scale.view(torch.uint8).view(-1, 4)
        blocks = torch.cat([scales, packed], dim=1).cpu().numpy()
        return np.ascontiguousarray(blocks).reshape(-1)

    def _codes(self) -> torch.Tensor:
        pairs = torch.stack([self.weight_packed & 15, self.weight_packed >> 4], dim=-1)
        return pairs.view(len(self.weight_packed), -1)


def shared_scale(*weights: torch.Tensor) -> torch.Tensor:
    """The tensor scale of matrices on one device that have one together: float32 ``[]``."""
    with torch.no_grad():
        return _scale_of(torch.stack([_largest(each) for each in weights]).amax())


def fake_quantize(w: torch.Tensor, tensor_scale: torch.Tensor | None = None) -> torch.Tensor:
    """What ``pack(w)`` dequantises to, with a straight-through gradient.

    Args:
        w: float32, bfloat16 or float16 ``[rows, columns]``; columns a multiple of 16.
        tensor_scale: from `shared_scale`, of `w` among others; None for that of `w` alone.

    Returns:
        float32 ``[rows, columns]``; the arithmetic is float32 whatever the type of `w`.
    """
    _check(w)
    return straight_through(w, lambda latent: _rounded(latent, tensor_scale).values().view(w.shape))


def fake_quantize_activations(x: torch.Tensor, tensor_scale: torch.Tensor) -> torch.Tensor:
    """Activations as a kernel with NVFP4 inputs sees them: block scales are those of `x` itself.

    Args:
        x: ``[..., columns]``, columns a multiple of 16. Magnitudes above 6 * 448 * `tensor_scale`
            are clipped.
        tensor_scale: float32 ``[]``, positive: the largest magnitude that calibration saw over
            6 * 448.

    Returns:
        A tensor like `x`, of its type: in bfloat16 the values are rounded to it.
    """
    _check(x)

    def rounded(latent: torch.Tensor) -> torch.Tensor:
        return _rounded(latent, tensor_scale).values().view(x.shape).to(x.dtype)

    return straight_through(x, rounded)


def pack(w: torch.Tensor, tensor_scale: torch.Tensor | None = None) -> PackedNvfp4:
    """Quantise a matrix: what a file stores of it.

    Args:
        w: as for `fake_quantize`.
        tensor_scale: as for `fake_quantize`.

    Raises:
        EngineError: a weight is not finite.
    """
    _check(w)
    refuse_diverged(w)
    with torch.no_grad():
        rounded = _rounded(w, tensor_scale)
        magnitudes = torch.tensor(_E2M1, device=w.device)
        found = torch.searchsorted(magnitudes, rounded.levels.abs(), out_int32=True)
        codes = found.to(torch.uint8) | (rounded.levels < 0).to(torch.uint8) << 3
        pairs = codes.view(len(w), -1, 2)
        return PackedNvfp4(
            weight_packed=pairs[..., 0] | pairs[..., 1] << 4,
            weight_scale=rounded.scale.to(torch.float8_e4m3fn).view(len(w), -1),
            tensor_scale=rounded.tensor_scale,
        )


@dataclass(frozen=True, slots=True)
class _Rounded:
    """Blocks of 16: float32 E2M1 numbers ``[blocks, 16]`` and E4M3 numbers ``[blocks, 1]``."""

    levels: torch.Tensor
    scale: torch.Tensor
    tensor_scale: torch.Tensor

    def values(self) -> torch.Tensor:
        """The weights ``[blocks, 16]``, in the place of the levels."""
        # Level times block scale has no rounding error, so the order of the two is the order in
        # which a GGUF is read: block first, tensor scale last.
        return self.levels.mul_(self.scale).mul_(self.tensor_scale)


def _check(w: torch.Tensor) -> None:
    if not w.ndim or w.shape[-1] % BLOCK or not w.numel():
        raise UserError(f"NVFP4 needs rows of whole blocks of {BLOCK}, not {tuple(w.shape)}")


def _largest(w: torch.Tensor) -> torch.Tensor:
    least, most = w.detach().aminmax()
    return torch.maximum(most, -least).float()


def _scale_of(largest: torch.Tensor) -> torch.Tensor:
    whole = largest / (_LARGEST_CODE * _LARGEST_SCALE)
    return torch.where(largest < _NEGLIGIBLE, 1.0, whole)


def _rounded(w: torch.Tensor, tensor_scale: torch.Tensor | None) -> _Rounded:
    grouped = w.reshape(-1, BLOCK).float()
    levels = grouped.abs()
    # Floats of one sign have the order of their bits, and on a CPU torch finds the largest integer
    # of a short row four times faster than the largest float.
    largest = levels.view(torch.int32).amax(dim=1, keepdim=True).view(torch.float32)
    if tensor_scale is None:
        tensor_scale = _scale_of(largest.amax())
    # Not left to the cast: E4M3 has no infinity, so an overflow may become the largest or NaN.
    scale = (largest / _LARGEST_CODE / tensor_scale).clamp_(max=_LARGEST_SCALE)
    scale = scale.to(torch.float8_e4m3fn).float()
    # A block so far below the tensor's largest weight that its scale rounds to zero becomes zero.
    divisor = (scale * tensor_scale).masked_fill_(scale == 0, torch.inf)
    torch.div(grouped, divisor, out=levels).clamp_(-_LARGEST_CODE, _LARGEST_CODE)
    return _Rounded(_round_to_e2m1(levels), scale, tensor_scale)


def _round_to_e2m1(levels: torch.Tensor) -> torch.Tensor:
    """Round float32 numbers within -6..6 to E2M1 in their place, ties to the even code.

    E2M1 numbers lie half of 2^e apart within [2^e, 2^(e+1)), and 0.5 apart below 1. Adding a number
    whose last bit is worth just that, and taking it away again, lets the hardware round.
    """
    exponents = (levels.view(torch.int32) & 0x7F800000).clamp_(min=0x3F800000)
    anchor = exponents.view(torch.float32).mul_(1.5 * 2**22)
    return levels.add_(anchor).sub_(anchor)
