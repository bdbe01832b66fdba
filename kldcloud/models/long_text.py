"""A text that need not fit in memory: checked once from end to end, then read a range at a time."""

from __future__ import annotations

import bisect
import codecs
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from kldcloud.errors import UserError
from kldcloud.models.sources import not_utf8

MOST_BYTES: Final = 1 << 37
"""128 GiB, some tens of billions of tokens: a wrong file is refused, and no corpus that one trains
on."""
_BLOCK_BYTES: Final = 4 << 20
_NEAR_BYTES: Final = 64 << 10
_BLANKS: Final = (re.compile(rb"\n"), re.compile(rb"\s"))


class LongText:
    """A UTF-8 file, of which one newline at the end does not count.

    Places are offsets in bytes, unless they are said to be in characters.

    Attributes:
        end: place where it ends.
        characters: in all.
    """

    def __init__(self, path: Path, name: str) -> None:
        """Read it once.

        Args:
            path: of the file.
            name: what errors call it.

        Raises:
            UserError: it cannot be read, or has more than MOST_BYTES.
            FormatError: it is not UTF-8; the message gives the offset of the first bad byte.
        """
        self._path = path
        # Every block's place in bytes and in characters.
        self._bytes, self._characters = [0], [0]
        last = b""
        decoder = codecs.getincrementaldecoder("utf-8")()
        for block in self._blocks():
            last = block[-1:]
            self._count(decoder, block, name)
        self._count(decoder, b"", name, final=True)
        ending = last == b"\n"
        self.end = self._bytes[-1] - ending
        self.characters = self._characters[-1] - ending

    def place(self, character: int) -> int:
        """Where a character begins; the file's end if it has no more."""
        at = bisect.bisect_right(self._characters, character) - 1
        start, stop = self._bytes[at], self._bytes[min(at + 1, len(self._bytes) - 1)]
        before = self.raw(start, stop).decode()[: character - self._characters[at]]
        return start + len(before.encode())

    def characters_before(self, place: int) -> int:
        """Characters that begin before a place where one begins."""
        at = bisect.bisect_right(self._bytes, place) - 1
        return self._characters[at] + len(self.raw(self._bytes[at], place).decode())

    def cut(self, place: int) -> int:
        """Where to cut the text from `place` on: behind a line, behind a word, or at `place`.

        The first of these that comes soon: within 64 KiB, and in the first quarter of what is left.
        """
        near = self.raw(place, place + min(_NEAR_BYTES, (self.end - place) // 4))
        for blank in _BLANKS:
            if found := blank.search(near):
                return place + found.end()
        return place

    def raw(self, start: int, stop: int) -> bytes:
        """The bytes from one place to another.

        Raises:
            UserError: the file has become shorter, or cannot be read any more.
        """
        with self._opened() as file:
            file.seek(start)
            data = file.read(stop - start)
        if len(data) != stop - start:
            raise UserError(
                f"{self._path} has just been changed", hint="run the same command again"
            )
        return data

    def blocks(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes of a range, a few MiB at a time."""
        for at in range(start, stop, _BLOCK_BYTES):
            yield self.raw(at, min(at + _BLOCK_BYTES, stop))

    def _count(
        self, decoder: codecs.IncrementalDecoder, block: bytes, name: str, *, final: bool = False
    ) -> None:
        kept = len(decoder.getstate()[0])
        try:
            characters = len(decoder.decode(block, final))
        except UnicodeDecodeError as error:
            offset = self._bytes[-1] + error.start
            raise not_utf8(name, error.object[error.start], offset) from None
        whole = kept + len(block) - len(decoder.getstate()[0])
        self._bytes.append(self._bytes[-1] + whole)
        self._characters.append(self._characters[-1] + characters)

    def _blocks(self) -> Iterator[bytes]:
        with self._opened() as file:
            size = self._path.stat().st_size
            if size > MOST_BYTES:
                raise UserError(
                    f"{self._path} has {size:,} bytes, more than the {MOST_BYTES:,} of a text"
                )
            while block := file.read(_BLOCK_BYTES):
                yield block

    @contextlib.contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        try:
            with self._path.open("rb") as file:
                yield file
        except OSError as error:
            raise UserError(f"{self._path}: cannot be read: {error.strerror or error}") from error
