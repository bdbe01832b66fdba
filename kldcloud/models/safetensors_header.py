"""What a safetensors file says about its tensors, read without them and without trusting it.

Layout, by the format's own README: eight bytes with the length of the header, little-endian; the
header, JSON that begins with `{`; then the tensors, one after another without a gap.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from kldcloud.errors import FormatError
from kldcloud.models.bounded_json import parse_json_object
from kldcloud.models.regular_file import DOWNLOAD_AGAIN, open_regular

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_MAX_VALUES = 1 << 22  # a tensor has about ten: 400,000 tensors
_MAX_RANK = 16
_MAX_DIMENSION = 1 << 48
_MAX_BITS = 1 << 60
_MAX_NAME = 1024
_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_LFS_POINTER = b"version "
_BITS: Final[Mapping[str, int]] = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""Bits of one element, by the name that the format gives its type."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies and how it is stored.

    Attributes:
        name: such as ``"lm_head.weight"``.
        dtype: the format's own word, such as ``"BF16"``.
        shape: the contiguous dimension last: ``(V, d)`` for an output head. May be empty, and may
            hold zeros.
        offset: bytes from the start of the file.
        nbytes: bytes of its data.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """The header of one safetensors file.

    Attributes:
        tensors: by name, in the order of their bytes.
        file_bytes: size of the whole file.
    """

    tensors: Mapping[str, StoredTensor]
    file_bytes: int

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors' data."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def read_safetensors_header(path: Path) -> SafetensorsHeader:
    """Read and check the header of a safetensors file.

    Args:
        path: of the file; its tensors are not read.

    Raises:
        UserError: there is no such file, or it cannot be opened.
        FormatError: it is no safetensors, is truncated, contradicts itself, or goes beyond the
            bounds above.
    """
    with open_regular(path, wanted="give the folder of a model") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(_LENGTH_BYTES)
        if start == _LFS_POINTER:
            hint = "run git lfs pull in its folder"
            raise _wrong(path, "is a Git LFS pointer, not the weights", hint)
        length = int.from_bytes(start, "little")
        if len(start) < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
            if length > _MAX_HEADER_BYTES:
                raise _wrong(path, f"is not a safetensors file (it begins with {start!r})")
            raise _wrong(path, f"the file ends within its header (at byte {size:,})")
        if length > _MAX_HEADER_BYTES:
            raise _wrong(path, f"claims a header of {length:,} bytes")
        raw = file.read(length)
    if not raw.startswith(b"{"):
        raise _wrong(path, f"is not a safetensors file (its header begins with {raw[:8]!r})")
    entries = parse_json_object(raw, f"{path}: its header", max_values=_MAX_VALUES)
    _check_metadata(path, entries.pop(_METADATA, None))
    return SafetensorsHeader(_read_tensors(path, entries, _LENGTH_BYTES + length, size), size)


def read_stored_bytes(
    path: Path, tensor: StoredTensor
) -> np.memmap[tuple[int], np.dtype[np.uint8]]:
    """Map one tensor's stored bytes, read-only.

    Args:
        path: the file whose header gave `tensor`.
        tensor: one that has elements.

    Returns:
        uint8 ``[tensor.nbytes]``; pages are read as they are touched.

    Raises:
        UserError: there is no such file, or it cannot be opened.
        FormatError: the file is shorter than its header said.
    """
    with open_regular(path, wanted="give the folder of a model") as file:
        if tensor.offset + tensor.nbytes > os.fstat(file.fileno()).st_size:
            raise _wrong(path, f"the file ends within the tensor {tensor.name!r}")
        shape = (tensor.nbytes,)
        return np.memmap(file, dtype=np.uint8, mode="r", offset=tensor.offset, shape=shape)


def _read_tensors(
    path: Path, entries: Mapping[str, Any], data_start: int, size: int
) -> dict[str, StoredTensor]:
    claims = [_read_tensor(path, name, entry) for name, entry in entries.items()]
    # One without elements begins where the next one does.
    claims.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    end, tensors = 0, {}
    for claim in claims:
        if claim.offset != end:
            word = "overlaps" if claim.offset < end else "leaves a gap after"
            raise _wrong(path, f"tensor {claim.name!r} {word} the one before it")
        end += claim.nbytes
        at = data_start + claim.offset
        if data_start + end > size:
            raise _wrong(path, f"the file ends within the tensor {claim.name!r} (at byte {size:,})")
        tensors[claim.name] = StoredTensor(claim.name, claim.dtype, claim.shape, at, claim.nbytes)
    if data_start + end < size:
        raise _wrong(path, f"has {size - data_start - end:,} bytes that belong to no tensor")
    return tensors


def _read_tensor(path: Path, name: str, entry: object) -> StoredTensor:
    """Read one entry; its offset still counts from the data's start."""
    if not 0 < len(name) <= _MAX_NAME or not name.isprintable():
        raise _wrong(path, f"has a tensor with the impossible name {name[:80]!r}")
    what = f"tensor {name[:80]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _wrong(path, f"{what} has no dtype, shape and data_offsets, or has more")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        hint = "update kldcloud, or convert the model to a type that is known"
        raise _wrong(path, f"{what} has the unknown type {str(dtype)[:20]!r}", hint)
    if not _are_counts(shape, _MAX_DIMENSION) or len(shape) > _MAX_RANK:
        raise _wrong(path, f"{what} has an impossible shape")
    bits = _BITS[dtype]
    for dimension in shape:
        bits *= dimension
        if bits > _MAX_BITS:
            raise _wrong(path, f"{what} has an impossible shape")
    if bits % 8:
        raise _wrong(path, f"{what} is not a whole number of bytes")
    if not _are_counts(offsets, _MAX_BITS) or len(offsets) != 2:  # noqa: PLR2004 - begin and end
        raise _wrong(path, f"{what} has impossible data_offsets")
    begin, end = offsets
    if end - begin != bits // 8:
        raise _wrong(path, f"{what} has {end - begin:,} bytes, and its shape {bits // 8:,}")
    return StoredTensor(name, dtype, tuple(shape), begin, end - begin)


def _check_metadata(path: Path, found: object) -> None:
    texts = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    if found is not None and not texts:
        raise _wrong(path, f"{_METADATA} does not map texts to texts")


def _are_counts(value: object, most: int) -> bool:
    return isinstance(value, list) and all(
        type(each) is int and 0 <= each <= most for each in value
    )


def _wrong(path: Path, what: str, hint: str = DOWNLOAD_AGAIN) -> FormatError:
    return FormatError(f"{path}: {what}", hint=hint)
