"""What the bytes of a GGUF tensor mean, read a second time so that an export can be checked.

This shares nothing with the code that packs: it follows the loops of ggml-quants.c from a block's
bytes to its weights, a group at a time, with numpy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kldcloud.errors import UserError
from kldcloud.models.ggml_types import GGML_TYPES

F4 = npt.NDArray[np.float32]
Blocks = npt.NDArray[Any]
"""An array of structs, one a block."""

_Reader = Callable[[Blocks, F4], None]


def stored_values(type_name: str, data: npt.NDArray[np.uint8]) -> F4:
    """Dequantise whole blocks.

    Args:
        type_name: as `kldcloud.models.gguf_header` names it.
        data: uint8, the bytes of whole blocks.

    Returns:
        float32 ``[weights]``. For NVFP4 without the tensor's scale, which is a tensor of its own.

    Raises:
        UserError: the type is not one that QAD exports.
    """
    reader = _READERS.get(type_name)
    if reader is None:
        raise UserError(
            f"tensors of type {type_name} cannot be checked",
            hint=f"QAD exports {', '.join(_READERS)}",
        )
    struct, read = reader
    blocks = np.ascontiguousarray(data).reshape(-1).view(struct)
    values = np.empty((len(blocks), _ELEMENTS[type_name]), np.float32)
    read(blocks, values)
    return values.reshape(-1)


def _plain(blocks: Blocks, y: F4) -> None:
    y[:, 0] = blocks["x"]


def _bf16(blocks: Blocks, y: F4) -> None:
    y.view(np.uint32)[:, 0] = blocks["x"].astype(np.uint32) << 16


def _column(values: npt.NDArray[Any]) -> F4:
    return values.astype(np.float32)[:, None]


def _q4(zero: int) -> _Reader:
    def read(blocks: Blocks, y: F4) -> None:
        for half in (0, 1):
            q = (blocks["qs"] >> (4 * half)) & 15
            y[:, 16 * half : 16 * half + 16] = (q.astype(np.float32) - zero) * _column(blocks["d"])
        if not zero:
            y += _column(blocks["m"])

    return read


def _q5(zero: int) -> _Reader:
    def read(blocks: Blocks, y: F4) -> None:
        for j in range(32):
            q = (blocks["qs"][:, j % 16] >> (4 * (j // 16))) & 15
            fifth = (blocks["qh"] >> j) & 1
            y[:, j] = (q + 16.0 * fifth - zero) * blocks["d"].astype(np.float32)
        if not zero:
            y += _column(blocks["m"])

    return read


def _q8_0(blocks: Blocks, y: F4) -> None:
    y[:] = blocks["qs"] * _column(blocks["d"])


def _scale_and_minimum(scales: npt.NDArray[np.uint8], j: int) -> tuple[F4, F4]:
    """The j-th pair of 6-bit factors, as ggml's get_scale_min_k4 finds it."""
    if j < 4:  # noqa: PLR2004 - the first four are whole
        scale, minimum = scales[:, j] & 63, scales[:, j + 4] & 63
    else:
        scale = (scales[:, j + 4] & 15) + 16 * (scales[:, j - 4] >> 6)
        minimum = (scales[:, j + 4] >> 4) + 16 * (scales[:, j] >> 6)
    return _column(scale), _column(minimum)


def _k_quant(blocks: Blocks, y: F4) -> None:
    """Q4_K, and Q5_K where the blocks have fifth bits."""
    d, dmin = _column(blocks["d"]), _column(blocks["dmin"])
    for j in range(8):
        scale, minimum = _scale_and_minimum(blocks["scales"], j)
        bytes_of_pair = blocks["qs"][:, 32 * (j // 2) : 32 * (j // 2) + 32]
        q = (bytes_of_pair >> (4 * (j % 2))) & 15
        if "qh" in (blocks.dtype.names or ()):
            q = q + 16 * ((blocks["qh"] >> j) & 1)
        y[:, 32 * j : 32 * j + 32] = (d * scale) * q - dmin * minimum


def _q6_k(blocks: Blocks, y: F4) -> None:
    d = _column(blocks["d"])
    for j in range(16):
        half, quarter, first = j // 8, (j % 8) // 2, 16 * (j % 2)
        low = 64 * half + 32 * (quarter % 2) + first
        high = 32 * half + first
        q = (blocks["ql"][:, low : low + 16] >> (4 * (quarter // 2))) & 15
        q = q | (((blocks["qh"][:, high : high + 16] >> (2 * quarter)) & 3) << 4)
        scale = _column(blocks["scales"][:, j])
        y[:, 16 * j : 16 * j + 16] = d * scale * (q.astype(np.float32) - 32)


def _nvfp4(blocks: Blocks, y: F4) -> None:
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    e2m1 = np.concatenate([magnitudes, -magnitudes])
    for j in range(4):
        scale = blocks["d"][:, j].astype(np.int32)
        exponent, fraction = scale >> 3 & 15, (scale & 7).astype(np.float32)
        normal = exponent > 0
        e4m3 = np.ldexp(np.where(normal, 8, 0) + fraction, np.where(normal, exponent, 1) - 10)
        e4m3[scale == 0x7F] = 0  # the code of a NaN; ggml reads it so  # noqa: PLR2004
        for half in (0, 1):
            q = (blocks["qs"][:, 8 * j : 8 * j + 8] >> (4 * half)) & 15
            start = 16 * j + 8 * half
            y[:, start : start + 8] = e2m1[q] * _column(e4m3)


_F2, _I1 = "<f2", "i1"
_READERS: Final[Mapping[str, tuple[np.dtype[Any], _Reader]]] = MappingProxyType(
    {
        "F32": (np.dtype([("x", "<f4")]), _plain),
        "F16": (np.dtype([("x", _F2)]), _plain),
        "BF16": (np.dtype([("x", "<u2")]), _bf16),
        "Q4_0": (np.dtype([("d", _F2), ("qs", "u1", 16)]), _q4(8)),
        "Q4_1": (np.dtype([("d", _F2), ("m", _F2), ("qs", "u1", 16)]), _q4(0)),
        "Q5_0": (np.dtype([("d", _F2), ("qh", "<u4"), ("qs", "u1", 16)]), _q5(16)),
        "Q5_1": (np.dtype([("d", _F2), ("m", _F2), ("qh", "<u4"), ("qs", "u1", 16)]), _q5(0)),
        "Q8_0": (np.dtype([("d", _F2), ("qs", _I1, 32)]), _q8_0),
        "Q4_K": (
            np.dtype([("d", _F2), ("dmin", _F2), ("scales", "u1", 12), ("qs", "u1", 128)]),
            _k_quant,
        ),
        "Q5_K": (
            np.dtype(
                [
                    ("d", _F2),
                    ("dmin", _F2),
                    ("scales", "u1", 12),
                    ("qh", "u1", 32),
                    ("qs", "u1", 128),
                ]
            ),
            _k_quant,
        ),
        "Q6_K": (
            np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", _I1, 16), ("d", _F2)]),
            _q6_k,
        ),
        "NVFP4": (np.dtype([("d", "u1", 4), ("qs", "u1", 32)]), _nvfp4),
    }
)
_ELEMENTS: Final = {kind.name: kind.block_elements for kind in GGML_TYPES.values()}
