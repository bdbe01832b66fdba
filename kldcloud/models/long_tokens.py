"""The tokens of a long text, a piece at a time, by as many threads as there are cores.

llama.cpp takes 30 bytes of memory for each byte that it tokenises, and no more than 2 GiB at once.
So a text is cut at places that change no token: what llama.cpp makes of the thousand bytes before
one is how its tokens of these and of the thousand bytes after it begin, and every piece is
tokenised with what is before it in view. A tokenizer sees words and runs of blanks, and a token is
a part of one: only where a longer one lies around a place could the whole text have other tokens.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np

from kldcloud.models.engine import Tokens
from kldcloud.models.long_text import LongText

PIECE_BYTES: Final = 1 << 20
"""Of text; larger ones are no faster."""
_LONGEST_PIECE: Final = 16 << 20
"""Where no place is good for so long, the text is cut anywhere."""
_WINDOW_BYTES: Final = 64 << 10
_AROUND_BYTES: Final = 1 << 10
_PLACES: Final = (re.compile(rb"(?<=\n)(?=\S)"), re.compile(rb"(?<=\S)(?=\s)"))
"""Beginnings of lines and, where a line's end belongs to what follows, ends of words."""
_TRIES: Final = 8
"""Places of a kind that are tried in a window."""
_MOST_THREADS: Final = 16


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """A part of a text.

    Attributes:
        stop: the place where it ends.
        tokens: int32 [n].
    """

    stop: int
    tokens: Tokens


class LongTokenizer:
    """Tokenises ranges of a text.

    Args:
        tokenize: int32 [n] of a text, special tokens added at its beginning alone; from any thread.
        threads: that tokenise at once.
    """

    def __init__(self, tokenize: Callable[[str], Tokens], threads: int) -> None:
        self._tokenize = tokenize
        self._threads = min(max(threads, 1), _MOST_THREADS)

    def pieces(self, text: LongText, start: int, stop: int) -> Generator[TokenPiece]:
        """The tokens of a range, in order, as if the text began and ended with it.

        Raises:
            EngineError: if llama.cpp refuses the text.
            UserError: the file cannot be read any more.
        """
        waiting: deque[tuple[int, Future[Tokens]]] = deque()
        at = start
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="tokens")
        try:
            while at < stop or waiting:
                while at < stop and len(waiting) <= self._threads:
                    end = self._end(text, at, stop)
                    first = max(at - _AROUND_BYTES, start)
                    waiting.append((end, pool.submit(self._piece, text, first, at, end)))
                    at = end
                end, found = waiting.popleft()
                yield TokenPiece(end, found.result())
        finally:
            pool.shutdown(cancel_futures=True)

    def _piece(self, text: LongText, first: int, start: int, stop: int) -> Tokens:
        """The tokens of `start` to `stop` after what is before it from `first` on."""
        raw = text.raw(first, stop)
        found = self._after(raw[: start - first], raw[start - first :])
        if found is not None:
            return found
        # The text was cut anywhere.
        return self._tokenize(_decoded(raw[start - first :]))[len(self._tokenize("")) :]

    def _after(self, before: bytes, after: bytes) -> Tokens | None:
        """The tokens of what is after a place, unless one of them begins before it."""
        if not before:
            return self._tokenize(_decoded(after))
        known = self._tokenize(_decoded(before))
        found = self._tokenize(_decoded(before + after))
        return found[len(known) :] if np.array_equal(found[: len(known)], known) else None

    def _end(self, text: LongText, start: int, stop: int) -> int:
        """Where the piece that begins at `start` ends."""
        furthest = min(start + _LONGEST_PIECE, stop)
        for at in range(start + PIECE_BYTES, furthest, _WINDOW_BYTES):
            # What surrounds the places of this window is looked at too.
            first = max(at - _AROUND_BYTES, start)
            raw = text.raw(first, min(at + _WINDOW_BYTES + _AROUND_BYTES, stop))
            for places in _PLACES:
                found = places.finditer(raw, at - first, at - first + _WINDOW_BYTES)
                for each in islice(found, _TRIES):
                    place = each.end()
                    before = raw[max(place - _AROUND_BYTES, 0) : place]
                    if self._after(before, raw[place : place + _AROUND_BYTES]) is not None:
                        return first + place
        # Not inside a character.
        while furthest < stop and text.raw(furthest, furthest + 1)[0] & 0xC0 == 0x80:  # noqa: PLR2004
            furthest += 1
        return furthest


def _decoded(raw: bytes) -> str:
    """A range of a text; of a character that it begins or ends inside, nothing."""
    return raw.decode(errors="ignore")
