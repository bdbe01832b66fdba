"""Candidates compared on the same tokens: paired differences, and the ranks that they allow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from kldcloud.divergence.estimates import Interval
from kldcloud.divergence.records import Floats

CONFIDENCE = 0.95
"""Of every interval, and of all verdicts of one comparison together."""
_PAIRS_AT_ONCE: Final = 1024


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """How much larger one candidate's mean KL divergence is than another's, in nats.

    Attributes:
        better: index of the candidate with the smaller mean.
        worse: index of the other.
        value: the difference of means, not negative.
        error: standard error, cluster-robust by chunk; None of a single chunk.
        interval95: of this pair alone; None of a single chunk.
        p: two-sided, of no difference; None of a single chunk.
        p_holm: the same, adjusted for all pairs of the comparison.
    """

    better: int
    worse: int
    value: float
    error: float | None
    interval95: Interval | None
    p: float | None
    p_holm: float | None

    @property
    def distinguishable(self) -> bool:
        """Whether the data tell the two apart, all pairs of the comparison considered."""
        return self.p_holm is not None and self.p_holm <= 1 - CONFIDENCE


@dataclass(frozen=True, slots=True)
class RankRange:
    """The ranks that a candidate can have: one plus those surely better, up to all but the worse.

    With Holm's adjustment all ranges of a comparison hold together with 95 % confidence (Mogstad,
    Romano, Shaikh and Wilhelm, "Inference for Ranks", Review of Economic Studies 91, 2024).
    """

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """All candidates on one text.

    Attributes:
        order: their indices from the smallest mean to the largest; equals keep their order.
        ranks: of each candidate, by index.
        pairs: of all of them, the better one first, in the order of (better, worse).
    """

    order: tuple[int, ...]
    ranks: tuple[RankRange, ...]
    pairs: tuple[PairedDifference, ...]

    def neighbours(self) -> Iterator[PairedDifference]:
        """Each candidate against the next one."""
        by_name = {(pair.better, pair.worse): pair for pair in self.pairs}
        for pair in zip(self.order, self.order[1:], strict=False):
            yield by_name[pair]


@dataclass(frozen=True, slots=True, eq=False)
class Tested:
    """What a test says of each of a number of differences; float64 arrays ``[differences]``.

    Attributes:
        value: mean, in nats.
        error: standard error.
        low: lower end of each 95 % interval.
        high: upper end.
        p: two-sided, of no difference.
    """

    value: Floats
    error: Floats
    low: Floats
    high: Floats
    p: Floats


class Test(Protocol):
    """A test of differences that were seen chunk by chunk, of two chunks or more."""

    def __call__(self, differences: Floats, weights: Floats) -> Tested:
        """Test each row.

        Args:
            differences: float64 ``[differences, chunks]``.
            weights: float64 ``[chunks]``, scored positions of each chunk.
        """
        ...


def student(differences: Floats, weights: Floats) -> Tested:
    """Test once, after a number of chunks that the data had no part in choosing.

    With differences D_g, overall mean D, sizes n_g, G chunks and n positions, the variance is
    ``G / (G - 1) * sum_g (n_g (D_g - D))**2 / n**2`` and t has G - 1 degrees of freedom, as in
    `estimates.Means`.
    """
    from scipy.special import stdtr, stdtrit

    value, error, _ = weighted_mean(differences, weights)
    degrees = len(weights) - 1
    half = float(stdtrit(degrees, (1 + CONFIDENCE) / 2)) * error
    varies = error > 0
    statistic = np.abs(value) / np.where(varies, error, 1.0)
    certain = np.where(value == 0, 1.0, 0.0)
    p = np.where(varies, np.minimum(1.0, 2 * stdtr(degrees, -statistic)), certain)
    return Tested(value, error, value - half, value + half, p)


def weighted_mean(rows: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean and cluster-robust standard error of each row, and its weighted deviations."""
    total, chunks = float(weights.sum()), len(weights)
    value: Floats = np.sum(rows * weights, axis=1) / total
    deviations = (rows - value[:, np.newaxis]) * weights
    squares = np.sum(deviations * deviations, axis=1)
    return value, np.sqrt(squares * chunks / (chunks - 1)) / total, deviations


def compare(chunk_means: Floats, sizes: Sequence[int], test: Test = student) -> Comparison:
    """Compare mean KL divergences of candidates that were measured on the same chunks.

    A chunk's difference is one observation: what moves both candidates alike cancels, and any
    correlation within the chunk is in it.

    Args:
        chunk_means: ``[candidates, chunks]`` float64, mean KL divergence in nats.
        sizes: scored positions of each chunk.
        test: of each pair.
    """
    weights = np.asarray(sizes, np.float64)
    total = float(weights.sum())
    means = [float(np.sum(row * weights)) / total for row in chunk_means]
    order = sorted(range(len(means)), key=lambda at: (means[at], at))
    names = [(better, worse) for at, better in enumerate(order) for worse in order[at + 1 :]]
    found = list(_differences(chunk_means, weights, names, test))
    adjusted = holm([p for *_, p in found])
    pairs = tuple(
        PairedDifference(*name, value, error, interval, p, p_holm)
        for name, (value, error, interval, p), p_holm in zip(names, found, adjusted, strict=True)
    )
    return Comparison(tuple(order), _ranks(len(means), pairs), pairs)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values so that comparing each with a level keeps the family's error below it.

    Step-down of Holm, "A simple sequentially rejective multiple test procedure", Scandinavian
    Journal of Statistics 6 (1979). None stays None and still counts in the family.
    """
    known = sorted((value, at) for at, value in enumerate(values) if value is not None)
    adjusted: list[float | None] = [None] * len(values)
    least = 0.0
    for step, (value, at) in enumerate(known):
        least = max(least, min(1.0, (len(values) - step) * value))
        adjusted[at] = least
    return adjusted


_Row = tuple[float, float | None, Interval | None, float | None]


def _differences(
    chunk_means: Floats, weights: Floats, names: Sequence[tuple[int, int]], test: Test
) -> Iterator[_Row]:
    """Value, error, interval and p of each pair."""
    total = float(weights.sum())
    for start in range(0, len(names), _PAIRS_AT_ONCE):
        some = names[start : start + _PAIRS_AT_ONCE]
        better, worse = (list(indices) for indices in zip(*some, strict=True))
        differences: Floats = chunk_means[worse] - chunk_means[better]
        if len(weights) < 2:  # noqa: PLR2004 - nothing varies within one
            for value in np.sum(differences * weights, axis=1) / total:
                yield float(value), None, None, None
            continue
        tested = test(differences, weights)
        columns = (tested.value, tested.error, tested.low, tested.high, tested.p)
        for value, error, low, high, p in zip(*(each.tolist() for each in columns), strict=True):
            yield value, error, Interval(low, high), p


def _ranks(candidates: int, pairs: Sequence[PairedDifference]) -> tuple[RankRange, ...]:
    above, below = [0] * candidates, [0] * candidates
    for pair in pairs:
        if pair.distinguishable:
            above[pair.worse] += 1
            below[pair.better] += 1
    return tuple(
        RankRange(1 + better, candidates - worse)
        for better, worse in zip(above, below, strict=True)
    )
