"""What the tokens of a vocabulary stand for: their text, and what kind of text it is."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

TOKEN_CLASSES: Final = (
    "space and letters",
    "letters",
    "digits",
    "punctuation",
    "white space",
    "special",
)
"""By what a token begins with, which needs no dictionary: where words stand apart, most tokens of
the first kind begin one, and most of the second go on with one."""

_WORD, _LETTERS, _DIGITS, _PUNCTUATION, _SPACE, _SPECIAL = range(len(TOKEN_CLASSES))


@dataclass(frozen=True, eq=False)
class TokenTexts:
    """The texts of a vocabulary of V tokens.

    Attributes:
        pieces: bytes of each token; part of a character, for some.
        special: bool [V]; tokens that steer a model and are no text.
    """

    pieces: Sequence[bytes]
    special: npt.NDArray[np.bool_]

    @cached_property
    def classes(self) -> npt.NDArray[np.int8]:
        """int8 [V], the index of each token's class in `TOKEN_CLASSES`."""
        found = np.fromiter(map(_class_of, self.pieces), np.int8, len(self.pieces))
        found[self.special] = _SPECIAL
        return found

    def running(self, tokens: Iterable[int]) -> list[str]:
        """Texts of tokens that follow one another: a character goes with the token that ends it."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return [decoder.decode(self._piece(token)) for token in tokens]

    def alone(self, token: int) -> str:
        """The text of a token by itself; bytes that are no character come as escapes."""
        return self._piece(token).decode(errors="backslashreplace")

    def _piece(self, token: int) -> bytes:
        return self.pieces[token] if 0 <= token < len(self.pieces) else b""


def _class_of(piece: bytes) -> int:
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return _SPECIAL
    bare = text.strip()
    if not text:
        return _SPECIAL
    if not bare:
        return _SPACE
    if bare[0].isdigit():
        return _DIGITS
    if not bare[0].isalpha():
        return _PUNCTUATION
    return _WORD if text[0].isspace() else _LETTERS
