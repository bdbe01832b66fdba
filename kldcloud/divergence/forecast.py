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
_MOST_EXCESS: Final = 1.0
"""Kurtosis less one, over the chunks: no sample's scatter is taken to vary by more than half."""
_LEAST: Final = 1e-300
_WIDEST: Final = 3.0


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

    What n chunks will show is predicted from the p of the pilot. The difference of two means of
    n > p chunks, p of them the pilot's, is taken to be around the pilot's with a standard error of
    ``s sqrt(1 / p - 1 / n)`` and Student's t; that of n < p of the pilot's is too, with the sign of
    both turned. How a mean scatters, a small pilot shows too little of where few chunks stand out:
    so new chunks are taken to be lognormal with the pilot's deviation of logarithms, which is off
    by ``1 / sqrt(2 (p - 1))`` of itself, and their own scatter varies as their kurtosis says.
    `tests/divergence/test_forecast.py` has how often the figures hold.

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
        self._logarithms = _logarithms(chunk_means, self._means)
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
        from scipy.special import stdtrit

        count, seen = boundary.counts[at], self._differences
        drift = float(stdtrit(self._chunks - 1, luck)) * math.sqrt(
            abs(1 / self._chunks - 1 / count)
        )
        sign = np.where(seen.value < 0, -1.0, 1.0)
        value = np.maximum(0.0, sign * seen.value + drift * seen.spread)
        p = sequential_p(value, seen.spread / math.sqrt(count), sign * seen.skew, boundary, at)
        return all(each is not None and each <= 1 - rule.confidence for each in holm(p.tolist()))

    def _precise(self, rule: Rule, boundary: Boundary, at: int, luck: float) -> bool:
        assert rule.half_width is not None  # noqa: S101 - no such rule without one
        count, seen = boundary.counts[at], self._means
        spread, skew = self._scatter(count, luck)
        level = boundary.nominal(1 - rule.confidence, at)
        low, high = bounds(seen.value, spread / math.sqrt(count), skew, count, level)
        arm = np.maximum(high - seen.value, seen.value - low)
        return bool(np.all(arm <= rule.half_width * seen.value))

    def _scatter(self, count: int, luck: float) -> tuple[Floats, Floats]:
        """Standard deviation and skewness that so many chunks will show of each mean."""
        from scipy.special import ndtri

        deviate, seen, pilot = float(ndtri(luck)), self._means, self._chunks
        drift = deviate * math.sqrt(abs(1 / pilot - 1 / count))
        spread = seen.spread * np.exp(-drift * seen.doubt)
        if count <= pilot:
            return spread, seen.skew
        w = np.exp(self._logarithms**2)
        excess = np.minimum(w**4 + 2 * w**3 + 3 * w**2 - 4, _MOST_EXCESS * count)
        doubt = np.sqrt(0.5 / (pilot - 1) + excess / (4 * count))
        variation = np.expm1((self._logarithms * np.exp(-deviate * doubt)) ** 2)
        share = pilot / count
        return (
            np.sqrt(share * spread**2 + (1 - share) * seen.value**2 * variation),
            share * seen.skew + (1 - share) * (variation + 3) * np.sqrt(variation),
        )


def _logarithms(rows: Floats, seen: _Scatter) -> Floats:
    """Standard deviations of the logarithms of chunks' means, or what stands in for them."""
    # No more than chunks that differ by a factor of a thousand: their powers must stay finite.
    known = np.minimum(np.std(np.log(np.maximum(rows, _LEAST)), axis=1, ddof=1), _WIDEST)
    ratio = seen.spread / np.where(seen.value > 0, seen.value, 1.0)
    plain = np.minimum(np.sqrt(np.log1p(ratio**2)), _WIDEST)
    return np.where(np.all(rows > _LEAST, axis=1), known, plain)


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
