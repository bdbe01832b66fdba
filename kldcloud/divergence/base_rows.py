"""The forms in which a base distribution reaches the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

HEADER_WORDS = 4
"""uint16 words before a row's codes: float32 scale, float32 minimum log-probability."""

CLAMP_NATS = 16.0
"""A code reaches this far below the row's maximum; everything lower is code 0."""


@dataclass(frozen=True, slots=True)
class LogitRows:
    """Base logits as the engine (or a rebuild from hidden states) gives them.

    Attributes:
        logits: float32 [rows, V], natural-log units.
    """

    logits: npt.NDArray[np.float32]

    @property
    def rows(self) -> int:
        return int(self.logits.shape[0])

    @property
    def vocabulary(self) -> int:
        return int(self.logits.shape[1])


@dataclass(frozen=True, slots=True)
class RowExtras:
    """What 16-nat codes lose, kept exactly beside them (all float64 unless said, one a row).

    Attributes:
        normaliser: log-sum-exp of the row's logits, less the maximum logit, nats.
        tail: probability of all entries whose code is 0.
        target: log-probability of the next token, nats.
        entropy: entropy of the row, nats.
        top: int32, first index of the maximum logit.
    """

    normaliser: npt.NDArray[np.float64]
    tail: npt.NDArray[np.float64]
    target: npt.NDArray[np.float64]
    entropy: npt.NDArray[np.float64]
    top: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class CodeRows:
    """16-nat uint16 codes, laid out as llama.cpp's base file lays out a row.

    Attributes:
        words: uint16 [rows, 4 + V rounded up to even]; see `HEADER_WORDS`.
        vocabulary: V; for odd V the last word is unused.
        extras: exact row facts, or None where a llama.cpp file is all there is.
    """

    words: npt.NDArray[np.uint16]
    vocabulary: int
    extras: RowExtras | None = None

    @property
    def rows(self) -> int:
        return int(self.words.shape[0])


BaseRows: TypeAlias = LogitRows | CodeRows


def words_per_row(vocabulary: int) -> int:
    """uint16 words of one row of codes: header, V codes, one unused if V is odd."""
    return HEADER_WORDS + 2 * ((vocabulary + 1) // 2)
