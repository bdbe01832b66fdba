"""A GGUF written from nothing: metadata as Python has it, and tensors, one held at a time.

Layout: the GGUF specification of the ggml project, version 3, little-endian.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from kldcloud.errors import FormatError
from kldcloud.models.ggml_types import GGML_TYPES
from kldcloud.models.regular_file import DOWNLOAD_AGAIN
from kldcloud.qad.gguf_retype import NewTensor
from kldcloud.qad.whole_file import whole_file, written

Array: TypeAlias = npt.NDArray[np.bool_] | npt.NDArray[np.int32] | npt.NDArray[np.float32]
Value: TypeAlias = bool | int | float | str | Sequence[str] | Array
"""A number is written as u32 or f32, an array as its dtype says."""

_VERSION: Final = 3
_ALIGNMENT: Final = 32
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_ELEMENTS: Final = {"bool": _BOOL, "int32": _I32, "float32": _F32}
_NUMBERS: Final = {kind.name: number for number, kind in GGML_TYPES.items()}


def write_gguf(
    target: Path,
    metadata: Mapping[str, Value],
    tensors: Sequence[NewTensor],
    *,
    check: Callable[[Path], object] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a file, which appears only once it is whole, and `check` has returned.

    Args:
        target: where to.
        metadata: in the file's order.
        tensors: in the file's order.
        check: called with the path of the finished file under another name.
        progress: called with bytes of tensors written and in all.

    Raises:
        FormatError: a tensor's data has another size than its shape says, or a text is none.
        StoreError: `target` cannot be written, such as on a full disk.
    """
    total, done = sum(each.nbytes for each in tensors), 0
    with whole_file(target, check) as part, written(target), part.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", _VERSION, len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(_text(key) + _value(value))
        file.write(_table(tensors))
        for each in tensors:
            _pad(file)
            data = each.data()
            if data.nbytes != each.nbytes:
                raise FormatError(
                    f"{target}: the tensor {each.name!r} takes {each.nbytes:,} bytes, and"
                    f" {data.nbytes:,} came"
                )
            file.write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
            done += each.nbytes
            if progress is not None:
                progress(done, total)
        _pad(file)
        file.flush()
        os.fsync(file.fileno())


def _text(text: str) -> bytes:
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        # JSON can spell half of a character.
        raise FormatError(f"{text[:40]!r} is no text", hint=DOWNLOAD_AGAIN) from None
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Value) -> bytes:
    """A value behind the number of its type."""
    if isinstance(value, bool):
        return struct.pack("<IB", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, np.ndarray):
        start = struct.pack("<IIQ", _ARRAY, _ELEMENTS[value.dtype.name], value.size)
        return start + value.astype(value.dtype.newbyteorder("<")).tobytes()
    start = struct.pack("<IIQ", _ARRAY, _STRING, len(value))
    return start + b"".join(map(_text, value))


def _table(tensors: Sequence[NewTensor]) -> bytes:
    table, offset = bytearray(), 0
    for each in tensors:
        rank = len(each.shape)
        table += _text(each.name) + struct.pack("<I", rank)
        table += struct.pack(f"<{rank}QIQ", *each.shape, _NUMBERS[each.type_name], offset)
        offset += -(-each.nbytes // _ALIGNMENT) * _ALIGNMENT
    return bytes(table)


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % _ALIGNMENT))
