"""How many chunks a rule to stop early is likely to need, from those of a pilot."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from kldcloud.divergence.checkpoints import Boundary, checkpoints, spend
from kldcloud.divergence.comparison import holm, weighted_mean
from kldcloud.divergence.records import Floats
from kldcloud.divergence.sequential import Rule, sequential_p
from kldcloud.divergence.skewness import bounds, skewness

_ODDS: Final = 0.1
"""Of needing fewer chunks than the low figure, and of needing more than the high one."""
_FEWEST: Final = 3


@dataclass(frozen=True, slots=True)
class Forecast:
    """Chunks that a rule will use, of all chunks of a text.

    Attributes:
        low: as few as this in about one case of ten.
        likely: as many as not.
        high: more than this in about one case of ten.
        of: all chunks.
        settles: whether the likely number ends with a decision; if not, it is all chunks.
    """

    low: int
    likely: int
    high: int
    of: int
    settles: bool


def forecast(rule: Rule, chunk_means: Floats, sizes: Sequence[int], of: int) -> Forecast:
    """Forecast when a rule will stop.

    What n chunks will show is predicted from the p of the pilot as if every pair were as far apart,
    and every mean as scattered, as there. A difference of means of n > p chunks, p of them the
    pilot's, is then normal around the pilot's with variance ``s**2 (1 / p - 1 / n)``, and the
    logarithm of s itself around the pilot's with ``(kurtosis - 1) / 4 (1 / p - 1 / n)``. That of
    n < p of the pilot's is too, with the sign of both turned. Where a few chunks stand out, a small
    pilot has not seen them, and says too little.

    Args:
        rule: when to stop.
        chunk_means: ``[candidates, chunks]`` float64, of the pilot's chunks, in nats.
        sizes: their scored positions.
        of: chunks of the text that the rule is meant for.

    Raises:
        ValueError: of fewer than three chunks, which show no scatter.
    """
    if len(sizes) < _FEWEST:
        raise ValueError(f"a pilot of {len(sizes)} chunks says nothing about scatter")
    boundary = spend(checkpoints(rule.least, of))
    pilot = _Pilot(chunk_means, np.asarray(sizes, np.float64))
    found = [pilot.first_settled(rule, boundary, luck) for luck in (1 - _ODDS, 0.5, _ODDS)]
    low, likely, high = (of if each is None else each for each in found)
    return Forecast(low, likely, high, of, settles=found[1] is not None)


class _Pilot:
    """Values of means and of all differences, and how they scatter from chunk to chunk."""

    def __init__(self, chunk_means: Floats, weights: Floats) -> None:
        self._chunks = len(weights)
        self._means = _Scatter.of(chunk_means, weights)
        pairs = list(itertools.combinations(range(len(chunk_means)), 2))
        one, other = (list(indices) for indices in zip(*pairs, strict=True)) if pairs else ([], [])
        self._differences = _Scatter.of(chunk_means[other] - chunk_means[one], weights)

    def first_settled(self, rule: Rule, boundary: Boundary, luck: float) -> int | None:
        """Chunks at the first checkpoint that settles it, with this share of luck."""
        settled = self._ranked if rule.when == "ranked" else self._precise
        return next(
            (
                count
                for at, count in enumerate(boundary.counts)
                if settled(rule, boundary, at, luck)
            ),
            None,
        )

    def _ranked(self, rule: Rule, boundary: Boundary, at: int, luck: float) -> bool:
        from scipy.special import ndtri

        count, seen = boundary.counts[at], self._differences
        drift = float(ndtri(luck)) * math.sqrt(abs(1 / self._chunks - 1 / count))
        sign = np.where(seen.value < 0, -1.0, 1.0)
        value = np.maximum(0.0, sign * seen.value + drift * seen.spread)
        p = sequential_p(value, seen.spread / math.sqrt(count), sign * seen.skew, boundary, at)
        return all(each is not None and each <= 1 - rule.confidence for each in holm(p.tolist()))

    def _precise(self, rule: Rule, boundary: Boundary, at: int, luck: float) -> bool:
        from scipy.special import ndtri

        assert rule.half_width is not None  # noqa: S101 - no such rule without one
        count, seen = boundary.counts[at], self._means
        drift = float(ndtri(luck)) * math.sqrt(abs(1 / self._chunks - 1 / count))
        spread = seen.spread * np.exp(-drift * seen.doubt)
        level = boundary.nominal(1 - rule.confidence, at)
        low, high = bounds(seen.value, spread / math.sqrt(count), seen.skew, count, level)
        arm = np.maximum(high - seen.value, seen.value - low)
        return bool(np.all(arm <= rule.half_width * seen.value))


@dataclass(frozen=True, slots=True, eq=False)
class _Scatter:
    """Rows of chunks; float64 arrays ``[rows]``.

    Attributes:
        value: mean.
        spread: standard deviation of one chunk.
        skew: skewness of one chunk.
        doubt: standard error of the logarithm of `spread`, times the root of the chunks.
    """

    value: Floats
    spread: Floats
    skew: Floats
    doubt: Floats

    @classmethod
    def of(cls, rows: Floats, weights: Floats) -> _Scatter:
        value, error, deviations = weighted_mean(rows, weights)
        squares = deviations * deviations
        second = np.mean(squares, axis=1)
        fourth = np.mean(squares * squares, axis=1)
        kurtosis = fourth / np.where(second > 0, second, 1.0) ** 2
        # No less than the normal distribution's: of few chunks, it is always small.
        doubt = np.sqrt(np.maximum(3.0, kurtosis) - 1) / 2
        return cls(value, error * math.sqrt(len(weights)), skewness(deviations), doubt)
