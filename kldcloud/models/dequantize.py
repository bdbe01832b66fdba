"""Stored tensor bytes as float32, to the bit what ggml's own dequantisers give.

Layouts follow the block structs of ggml-common.h. Products of a scale and a code are exact in
float32 (a scale has 11 significant bits, a code at most 8, a K-quant's sub-scale at most 7), so
each value is rounded once at most and fused multiply-adds of another build change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from kldcloud.errors import FormatError
from kldcloud.models.ggml_types import GGML_TYPES

F4 = npt.NDArray[np.float32]
U1 = npt.NDArray[np.uint8]

_PORTION = 1 << 20
"""Elements decoded at a time: what stands beside the result stays at some tens of MB."""

_SUPER_BLOCK = 256
_LAYOUTS = {kind.name: kind for kind in GGML_TYPES.values()}


def dequantize(data: U1, type_name: str) -> F4:
    """The values of whole blocks.

    Args:
        data: uint8 ``[n * block_bytes]``, as `read_tensor_bytes` maps it.
        type_name: the ggml type, one of `DEQUANTIZED`.

    Returns:
        float32 ``[n * block_elements]`` in the file's order; memory of its own.

    Raises:
        FormatError: for a type outside `DEQUANTIZED`.
    """
    if type_name not in _DECODERS:
        raise FormatError(
            f"tensors of type {type_name} are not dequantised here",
            hint=f"use a file of {', '.join(DEQUANTIZED)}",
        )
    decode, layout = _DECODERS[type_name], _LAYOUTS[type_name]
    blocks = data.reshape(-1, layout.block_bytes)
    values = np.empty((len(blocks), layout.block_elements), np.float32)
    step = _PORTION // layout.block_elements
    for start in range(0, len(blocks), step):
        values[start : start + step] = decode(blocks[start : start + step])
    return values.reshape(-1)


def _half(two_bytes: U1) -> F4:
    """uint8 [n, 2] as float32 [n, 1]."""
    return np.ascontiguousarray(two_bytes).view("<f2").astype(np.float32)


def _nibbles(codes: U1) -> U1:
    """uint8 [..., k] as [..., 2k]: all low halves, then all high ones."""
    return np.concatenate([codes & 0x0F, codes >> 4], axis=-1)


def _f32(blocks: U1) -> F4:
    return np.ascontiguousarray(blocks).view("<f4")


def _bf16(blocks: U1) -> F4:
    words = np.ascontiguousarray(blocks).view("<u2").astype(np.uint32)
    return (words << 16).view(np.float32)


def _q4_0(blocks: U1) -> F4:
    codes = _nibbles(blocks[:, 2:]).astype(np.float32)
    return (codes - np.float32(8)) * _half(blocks[:, :2])


def _q4_1(blocks: U1) -> F4:
    codes = _nibbles(blocks[:, 4:]).astype(np.float32)
    return codes * _half(blocks[:, :2]) + _half(blocks[:, 2:4])


def _five_bits(high: U1, low: U1) -> F4:
    """Codes 0..31 of 32 elements: bit i of four little-endian bytes is element i's fifth."""
    fifth = np.unpackbits(high, axis=1, bitorder="little") << 4
    return (_nibbles(low) | fifth).astype(np.float32)


def _q5_0(blocks: U1) -> F4:
    codes = _five_bits(blocks[:, 2:6], blocks[:, 6:])
    return (codes - np.float32(16)) * _half(blocks[:, :2])


def _q5_1(blocks: U1) -> F4:
    codes = _five_bits(blocks[:, 4:8], blocks[:, 8:])
    return codes * _half(blocks[:, :2]) + _half(blocks[:, 2:4])


def _q8_0(blocks: U1) -> F4:
    codes = np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32)
    return codes * _half(blocks[:, :2])


def _e4m3() -> F4:
    """All 256 codes as ggml reads them: no sign, and the code of NaN is 0."""
    codes = np.arange(256)
    exponent, fraction = codes >> 3 & 15, codes & 7
    normal = np.ldexp(1 + fraction / 8, exponent - 7)
    values = np.where(exponent > 0, normal, np.ldexp(fraction / 8, -6))
    values[0x7F] = 0
    return values.astype(np.float32)


_E2M1: Final = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_SIGNED_E2M1: Final = np.concatenate([_E2M1, 0 - _E2M1])  # ggml has no negative zero
_E4M3: Final = _e4m3()


def _nvfp4(blocks: U1) -> F4:
    """Four groups of sixteen; the scale of the whole tensor is another tensor's."""
    codes = _nibbles(blocks[:, 4:].reshape(-1, 4, 8))
    values: F4 = _SIGNED_E2M1[codes] * _E4M3[blocks[:, :4]][..., None]
    return values.reshape(len(blocks), -1)


def _sub_scales(blocks: U1) -> tuple[F4, F4]:
    """Scale and minimum of a Q4_K or Q5_K block's eight groups of 32, as float32 [n, 8, 1].

    Twelve bytes hold sixteen 6-bit numbers: the first four scales and minimums in the low bits of
    bytes 0-3 and 4-7, whose top two bits are those of the last four; bytes 8-11 hold the rest.
    """
    a, b, c = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([a & 63, (c & 0x0F) | (a >> 6 << 4)], axis=1)
    minimums = np.concatenate([b & 63, (c >> 4) | (b >> 6 << 4)], axis=1)
    scale = _half(blocks[:, :2]) * scales.astype(np.float32)
    minimum = _half(blocks[:, 2:4]) * minimums.astype(np.float32)
    return scale[..., None], minimum[..., None]


def _q4_k(blocks: U1) -> F4:
    scale, minimum = _sub_scales(blocks)
    codes = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return (codes.astype(np.float32) * scale - minimum).reshape(-1, _SUPER_BLOCK)


def _q5_k(blocks: U1) -> F4:
    scale, minimum = _sub_scales(blocks)
    low = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    group = np.arange(8, dtype=np.uint8)[:, None]
    fifth = blocks[:, None, 16:48] >> group & 1
    codes = (low | fifth << 4).astype(np.float32)
    return (codes * scale - minimum).reshape(-1, _SUPER_BLOCK)


def _q6_k(blocks: U1) -> F4:
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shift = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shift & 3
    codes = (low | high << 4).astype(np.float32) - np.float32(32)
    sub = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    scale = _half(blocks[:, 208:]) * sub
    return (codes.reshape(-1, 16, 16) * scale[..., None]).reshape(-1, _SUPER_BLOCK)


_DECODERS: Final[Mapping[str, Callable[[U1], F4]]] = MappingProxyType(
    {
        "F32": _f32,
        "F16": _half,
        "BF16": _bf16,
        "Q8_0": _q8_0,
        "Q6_K": _q6_k,
        "Q5_K": _q5_k,
        "Q5_1": _q5_1,
        "Q5_0": _q5_0,
        "Q4_K": _q4_k,
        "Q4_1": _q4_1,
        "Q4_0": _q4_0,
        "NVFP4": _nvfp4,
    }
)

DEQUANTIZED: Final = tuple(_DECODERS)
"""The types that `dequantize` knows, most bits first."""
