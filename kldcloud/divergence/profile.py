"""Where on a text the divergence lies: by position, by the base's confidence, by kind of token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from kldcloud.divergence.records import Floats, TokenRecords

POSITION_BINS: Final = 16
"""Over the scored half of a chunk: wide enough for steady means, narrow enough to see a trend."""

ENTROPY_EDGES: Final = (0.0, 0.05, 0.2, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)
"""Nats. Half of the positions of an English text lie below 2.5; the first bin is the base being
all but certain, and the last has no upper end."""

_TAIL: Final = (0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9998, 0.9999)
CURVE_SHARES: Final = (
    *(round(1 - share, 4) for share in reversed(_TAIL)),
    *(round(0.02 * step, 2) for step in range(6, 45)),
    *_TAIL,
    1.0,
)
"""Shares of the positions at which a distribution curve is drawn: finer towards both ends."""


@dataclass(frozen=True, slots=True)
class BinnedMean:
    """Mean KL divergence of the positions in one bin.

    Attributes:
        low: least value of what is binned.
        high: where the next bin begins; infinite for the last.
        tokens: positions in the bin.
        mean: nats; NaN if there are none.
        error: standard error, cluster-robust by chunk; NaN if fewer than two chunks have any.
    """

    low: float
    high: float
    tokens: int
    mean: float
    error: float


class Profile:
    """Adds token records, whole chunks at a time, in order; what it keeps grows with the chunks.

    Sums are made chunk by chunk, so that where shards begin cannot change a bit of the result.

    Args:
        context: tokens of a chunk; the second half is scored.
        classes: int8 [V], the class of each token of the vocabulary.
        kinds: how many classes there are.
    """

    def __init__(self, context: int, classes: npt.NDArray[np.int8], kinds: int) -> None:
        first = context // 2
        edges = first + (context - 1 - first) * np.arange(POSITION_BINS + 1) / POSITION_BINS
        # A short chunk has fewer positions than there are bins: some would be empty for ever.
        self._position = _Bins(np.unique(np.floor(edges)))
        self._entropy = _Bins(np.array([*ENTROPY_EDGES, math.inf]))
        self._classes = classes
        self._class = _Bins(np.arange(kinds + 1, dtype=np.float64))

    def add(self, records: TokenRecords) -> None:
        """Add records that begin and end with whole chunks."""
        chunk = records.chunk - records.chunk[:1]
        self._position.add(chunk, records.position.astype(np.float64), records.kld)
        self._entropy.add(chunk, records.entropy_base, records.kld)
        classes = np.take(self._classes, records.token, mode="clip")
        self._class.add(chunk, classes.astype(np.float64), records.kld)

    def by_position(self) -> tuple[BinnedMean, ...]:
        """Bins over the index, in its chunk, of the position whose prediction is scored."""
        return self._position.means()

    def by_confidence(self) -> tuple[BinnedMean, ...]:
        """Bins over the entropy of the base's distribution: the surest first."""
        return self._entropy.means()

    def by_class(self) -> tuple[BinnedMean, ...]:
        """One for each class of the token that follows, from `low` 0 on."""
        return self._class.means()


class _Bins:
    """Per chunk and bin: how many positions, and the sum of their divergences."""

    def __init__(self, edges: Floats) -> None:
        self._edges = edges
        self._counts: list[npt.NDArray[np.int64]] = []
        self._sums: list[Floats] = []

    def add(self, chunk: npt.NDArray[np.int32], of: Floats, kld: Floats) -> None:
        if not len(chunk):
            return
        bins = len(self._edges) - 1
        chunks = int(chunk[-1]) + 1
        # Rounding can leave an entropy a hair below zero.
        at = np.clip(np.searchsorted(self._edges, of, side="right") - 1, 0, bins - 1)
        cell = chunk.astype(np.int64) * bins + at
        size = chunks * bins
        self._counts.append(np.bincount(cell, minlength=size).reshape(chunks, bins))
        sums = np.bincount(cell, weights=kld, minlength=size).astype(np.float64)
        self._sums.append(sums.reshape(chunks, bins))

    def means(self) -> tuple[BinnedMean, ...]:
        bins = len(self._edges) - 1
        counts = np.concatenate([np.empty((0, bins), np.int64), *self._counts])
        sums = np.concatenate([np.empty((0, bins)), *self._sums])
        return tuple(
            _binned_mean(
                float(self._edges[at]), float(self._edges[at + 1]), counts[:, at], sums[:, at]
            )
            for at in range(bins)
        )


def _binned_mean(
    low: float, high: float, counts: npt.NDArray[np.int64], sums: Floats
) -> BinnedMean:
    """A mean of chunks that hold some of the bin: with counts n_g and sums S_g, M = sum S / sum n.

    Its variance is ``G / (G - 1) * sum (S_g - n_g M)**2 / (sum n)**2``, over the G chunks with any:
    the ratio estimator of clusters of unequal size, as in `estimates.Means`.
    """
    some = counts > 0
    held = counts[some].astype(np.float64)
    tokens, chunks = int(counts.sum()), int(some.sum())
    if not tokens:
        return BinnedMean(low, high, 0, math.nan, math.nan)
    mean = float(np.sum(sums[some])) / tokens
    if chunks < 2:  # noqa: PLR2004 - nothing varies within one
        return BinnedMean(low, high, tokens, mean, math.nan)
    deviations = sums[some] - held * mean
    squares = float(np.sum(deviations * deviations))
    return BinnedMean(low, high, tokens, mean, math.sqrt(squares * chunks / (chunks - 1)) / tokens)
