"""Candidates compared on the same tokens: paired differences, and the ranks that they allow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kldcloud.divergence.estimates import Interval
from kldcloud.divergence.records import Floats

CONFIDENCE = 0.95
"""Of every interval, and of all verdicts of one comparison together."""


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


def compare(chunk_means: Floats, sizes: Sequence[int]) -> Comparison:
    """Compare mean KL divergences of candidates that were measured on the same chunks.

    A chunk's difference is one observation: what moves both candidates alike cancels, and any
    correlation within the chunk is in it. With differences D_g, overall mean D, sizes n_g, G chunks
    and n positions, the variance is ``G / (G - 1) * sum_g (n_g (D_g - D))**2 / n**2`` and t has
    G - 1 degrees of freedom, as in `estimates.Means`.

    Args:
        chunk_means: ``[candidates, chunks]`` float64, mean KL divergence in nats.
        sizes: scored positions of each chunk.
    """
    weights = np.asarray(sizes, np.float64)
    total = float(weights.sum())
    means = [float(np.sum(row * weights)) / total for row in chunk_means]
    order = sorted(range(len(means)), key=lambda at: (means[at], at))
    names = [(better, worse) for at, better in enumerate(order) for worse in order[at + 1 :]]
    found = [
        _difference(chunk_means[better], chunk_means[worse], weights) for better, worse in names
    ]
    adjusted = holm([each.p for each in found])
    pairs = tuple(
        PairedDifference(
            better, worse, each.value, each.error, each.interval, each.p, each_adjusted
        )
        for (better, worse), each, each_adjusted in zip(names, found, adjusted, strict=True)
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


@dataclass(frozen=True, slots=True)
class _Tested:
    value: float
    error: float | None
    interval: Interval | None
    p: float | None


def _difference(better: Floats, worse: Floats, weights: Floats) -> _Tested:
    total = float(weights.sum())
    differences: npt.NDArray[np.float64] = worse - better
    value = float(np.sum(differences * weights)) / total
    chunks = len(weights)
    if chunks < 2:  # noqa: PLR2004 - nothing varies within one
        return _Tested(value, None, None, None)
    from scipy.special import stdtr, stdtrit

    deviations = (differences - value) * weights
    error = math.sqrt(float(np.sum(deviations * deviations)) * chunks / (chunks - 1)) / total
    half = float(stdtrit(chunks - 1, (1 + CONFIDENCE) / 2)) * error
    if error:
        p = min(1.0, 2 * float(stdtr(chunks - 1, -abs(value) / error)))
    else:
        p = 0.0 if value else 1.0
    return _Tested(value, error, Interval(value - half, value + half), p)


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
