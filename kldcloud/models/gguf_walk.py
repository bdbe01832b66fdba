"""A walk over the bytes of a GGUF file that cannot leave them: numbers, strings, arrays.

A length or count is checked against a limit and against what is left of the file before it is
used, so that a hostile or damaged file costs neither time nor memory.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from kldcloud.errors import FormatError
from kldcloud.models.regular_file import DOWNLOAD_AGAIN

_MAX_TEXT_BYTES = 1 << 26  # all string values together; chat templates are a few hundred KiB
_MAX_ARRAY_STRINGS = 1 << 24  # over all arrays: each costs a step of the walk
_MAX_KEPT_VALUES = 4096  # longer arrays are passed over, not kept

_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS = {
    0: ("u8", struct.Struct("<B")),
    1: ("i8", struct.Struct("<b")),
    2: ("u16", struct.Struct("<H")),
    3: ("i16", struct.Struct("<h")),
    4: ("u32", struct.Struct("<I")),
    5: ("i32", struct.Struct("<i")),
    6: ("f32", struct.Struct("<f")),
    _BOOL: ("bool", struct.Struct("<B")),
    10: ("u64", struct.Struct("<Q")),
    11: ("i64", struct.Struct("<q")),
    12: ("f64", struct.Struct("<d")),
}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

Scalar = bool | int | float


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """An array in the metadata.

    Attributes:
        element_type: ``"u32"``, ``"f32"``, ``"string"``, ...
        count: number of elements.
        values: the elements, or None for strings and for more than 4,096 elements.
    """

    element_type: str
    count: int
    values: tuple[Scalar, ...] | None


MetadataValue = Scalar | str | ArrayInfo


class GgufWalk:
    """A position in the mapped file that cannot leave it, and what strings have cost so far."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.size = len(data)
        self.at = 0
        self.text_left = _MAX_TEXT_BYTES
        self.array_strings_left = _MAX_ARRAY_STRINGS

    def wrong(self, what: str, *, hint: str = DOWNLOAD_AGAIN) -> FormatError:
        return FormatError(f"{self.path}: {what}", hint=hint)

    def advance(self, count: int, what: str) -> int:
        """Pass over `count` bytes and return where they begin."""
        start = self.at
        if count > self.size - start:
            raise self.wrong(f"the file ends within {what} (at byte {self.size:,})")
        self.at = start + count
        return start

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.data, self.advance(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack_from(self.data, self.advance(8, what))[0])

    def raw_string(self, what: str, limit: int) -> bytes:
        length = self.u64(what)
        if length > limit:
            raise self.wrong(f"{what} claims {length:,} bytes, more than {limit:,}")
        start = self.advance(length, what)
        return self.data[start : start + length]

    def name(self, what: str, limit: int) -> str:
        raw = self.raw_string(what, limit)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise self.wrong(f"{what} is not UTF-8: {raw[:40]!r}") from None
        if not text:
            raise self.wrong(f"{what} is empty")
        return text

    def value(self, kind: int, key: str) -> MetadataValue:
        what = f"metadata {key[:80]!r}"
        if kind == _ARRAY:
            return self._array(what)
        if kind == _STRING:
            raw = self.raw_string(what, self.text_left)
            self.text_left -= len(raw)
            # Engines show such text and never compare it: a stray byte is no reason to refuse.
            return raw.decode(errors="replace")
        return self._scalars(kind, 1, what)[0]

    def _scalars(self, kind: int, count: int, what: str) -> tuple[Scalar, ...]:
        if kind not in _SCALARS:
            raise self.wrong(f"{what} has the unknown type number {kind}")
        _, layout = _SCALARS[kind]
        start = self.advance(count * layout.size, what)
        raw = self.data[start : self.at]
        values: tuple[Scalar, ...] = tuple(value for (value,) in layout.iter_unpack(raw))
        if kind != _BOOL:
            return values
        if any(value not in (0, 1) for value in values):
            raise self.wrong(f"{what} is a bool that is neither 0 nor 1")
        return tuple(bool(value) for value in values)

    def _array(self, what: str) -> ArrayInfo:
        kind = self.u32(what)
        count = self.u64(what)
        if kind == _ARRAY:
            raise self.wrong(f"{what} is an array of arrays, which no engine reads")
        if kind == _STRING:
            self._pass_strings(count, what)
            return ArrayInfo("string", count, None)
        if kind not in _SCALARS:
            raise self.wrong(f"{what} is an array of the unknown type number {kind}")
        type_name, layout = _SCALARS[kind]
        if count <= _MAX_KEPT_VALUES:
            return ArrayInfo(type_name, count, self._scalars(kind, count, what))
        self.advance(count * layout.size, what)
        return ArrayInfo(type_name, count, None)

    def _pass_strings(self, count: int, what: str) -> None:
        if count > self.array_strings_left:
            raise self.wrong(f"{what} claims {count:,} strings, more than {_MAX_ARRAY_STRINGS:,}")
        self.array_strings_left -= count
        # A vocabulary has up to 262K strings: local names keep this walk at tens of milliseconds.
        data, at, size, read = self.data, self.at, self.size, _U64.unpack_from
        for _ in range(count):
            if at > size - 8:
                break
            at += 8 + read(data, at)[0]
        else:
            if at <= size:
                self.at = at
                return
        raise self.wrong(f"the file ends within {what} (at byte {size:,})")
