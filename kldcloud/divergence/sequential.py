"""Stopping when decided: whether a text's first chunks settle the order or the means already.

What is estimated is a mean over text like the corpus, of which its chunks are a sample: the same
as in the report, so that an interval means the same whether a run stopped or not. Chunks come in a
pseudo-random order (`corpus.order`), so the first n are such a sample too. Two things follow. All
chunks together may leave a ranking open, and intervals do not shrink to nothing at the end. And the
same intervals hold, with some room, for the corpus itself: around the mean of a finite set, means
of parts of it have covariances that are all smaller by one amount, a chunk's variance over the
number of all chunks.

A decision is made at fixed checkpoints only, and all of them together keep the promised confidence
(`checkpoints`): intervals are repeated confidence intervals (Jennison and Turnbull, "Interim
analyses: the repeated confidence interval approach", Journal of the Royal Statistical Society B 51,
1989), p-values are sequential ones. At each checkpoint they allow for skewness (`skewness`).

- `ranked`: Holm's adjustment of all pairs' sequential p-values is at most 1 - confidence for every
  pair. Each of those p-values is valid whenever one stops, and Holm's method asks nothing of how
  they depend on one another, so the chance of any wrong pair in a declared order is at most that.
- `precise`: every candidate's interval, of its mean alone, is as narrow as was asked for. Each
  interval covers with the confidence, as each in the report does.

Equal candidates never separate: then all chunks are measured, and the decision says that it is
none. And what no chunk has shown yet, no interval knows: where one chunk in fifty holds most of a
divergence, the first checkpoints may come before it. `Rule.least` is the guard against that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any, Final, Literal

import numpy as np

from kldcloud.divergence.checkpoints import Boundary, checkpoints, spend
from kldcloud.divergence.comparison import CONFIDENCE, Comparison, Tested, compare, weighted_mean
from kldcloud.divergence.estimates import Interval
from kldcloud.divergence.records import Floats
from kldcloud.divergence.skewness import bounds, skewness, upper_tail

STOP_RULE: Final = "kldcloud.stop/1"
"""Names all that a decision depends on beside the data. A change needs another name, for it is part
of a run's identity."""


@dataclass(frozen=True, slots=True)
class Rule:
    """When to stop.

    Attributes:
        when: `ranked`, once the order of all candidates is settled; `precise`, once each mean is.
        half_width: of each mean's interval, as a share of the mean, where that decides.
        confidence: of the order as a whole, or of each mean's interval.
        least: chunks before the first decision.
    """

    when: Literal["ranked", "precise"]
    half_width: float | None
    confidence: float
    least: int


@dataclass(frozen=True, slots=True)
class SettledMean:
    """A candidate's mean KL divergence in nats, with an interval that holds whenever one stops.

    Attributes:
        value: the mean.
        interval: of the rule's confidence; None of a single chunk.
    """

    value: float
    interval: Interval | None

    @property
    def half_width(self) -> float:
        """The longer arm of the interval, as a share of the mean; infinite of a single chunk."""
        if self.interval is None:
            return math.inf
        arm = max(self.interval.high - self.value, self.value - self.interval.low)
        return arm / self.value if self.value else 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What the chunks up to a checkpoint settle.

    Attributes:
        rule: what was asked for.
        settled: whether it is reached. If not, and these are all chunks, it never will be.
        checkpoint: which one this is, from 1.
        checkpoints: how many there are.
        chunks: that count; what was measured beyond them does not.
        of: all chunks.
        level: two-sided error rate of intervals which, given at this checkpoint, are 95 %
            intervals that hold whenever one stops.
        means: of the candidates, by index.
        comparison: of all pairs: its p-values and 95 % intervals hold whenever one stops.
    """

    rule: Rule
    settled: bool
    checkpoint: int
    checkpoints: int
    chunks: int
    of: int
    level: float
    means: tuple[SettledMean, ...]
    comparison: Comparison

    @property
    def final(self) -> bool:
        """Whether nothing more is to be measured."""
        return self.settled or self.chunks == self.of

    @property
    def saved(self) -> float:
        """Share of the chunks that need not be measured."""
        return 1 - self.chunks / self.of if self.final else 0.0

    @property
    def undecided(self) -> tuple[tuple[int, int], ...]:
        """Pairs that the rule's confidence does not tell apart, the smaller mean first."""
        return tuple(
            (pair.better, pair.worse)
            for pair in self.comparison.pairs
            if not _separated(pair.p_holm, self.rule)
        )

    def to_json_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Without the comparison, which a summary has in a place of its own.

        Args:
            names: of the candidates, by index.
        """
        return {
            **asdict(self.rule),
            "settled": self.settled,
            "checkpoint": self.checkpoint,
            "checkpoints": self.checkpoints,
            "chunks": self.chunks,
            "of": self.of,
            "saved": self.saved,
            "means": [
                {
                    "candidate": name,
                    "value": mean.value,
                    "interval": mean.interval and list(astuple(mean.interval)),
                }
                for name, mean in zip(names, self.means, strict=True)
            ],
            "order": [names[at] for at in self.comparison.order],
            "undecided": [[names[better], names[worse]] for better, worse in self.undecided],
        }


def decide(rule: Rule, chunk_means: Floats, sizes: Sequence[int], of: int) -> Decision | None:
    """Decide at the first checkpoint that settles it, else at the last one that is reached.

    Chunks beyond that checkpoint change nothing, so whoever has measured more comes to the same.

    Args:
        rule: when to stop.
        chunk_means: ``[candidates, chunks]`` float64, mean KL divergences in nats of the first
            chunks of the order.
        sizes: scored positions of each of those chunks.
        of: chunks of the whole text.

    Returns:
        The decision; None before the first checkpoint.
    """
    boundary = spend(checkpoints(rule.least, of))
    reached = [at for at, count in enumerate(boundary.counts) if count <= len(sizes)]
    if not reached:
        return None
    looks = (_Look(rule, chunk_means, sizes, boundary, at) for at in reached)
    last = _Look(rule, chunk_means, sizes, boundary, reached[-1])
    return next((look for look in looks if look.settled), last).decision()


class _Look:
    """What the first chunks say at one checkpoint; only what is asked for is computed."""

    def __init__(
        self, rule: Rule, chunk_means: Floats, sizes: Sequence[int], boundary: Boundary, at: int
    ) -> None:
        self._rule, self._boundary, self._at = rule, boundary, at
        count = boundary.counts[at]
        self._chunk_means, self._sizes = chunk_means[:, :count], sizes[:count]
        self._level = boundary.nominal(1 - CONFIDENCE, at)

    @property
    def settled(self) -> bool:
        if self._rule.when == "ranked":
            return all(_separated(pair.p_holm, self._rule) for pair in self._comparison.pairs)
        assert self._rule.half_width is not None  # noqa: S101 - no such rule without one
        return all(mean.half_width <= self._rule.half_width for mean in self._means)

    def decision(self) -> Decision:
        return Decision(
            rule=self._rule,
            settled=self.settled,
            checkpoint=self._at + 1,
            checkpoints=len(self._boundary.counts),
            chunks=len(self._sizes),
            of=self._boundary.counts[-1],
            level=self._level,
            means=self._means,
            comparison=self._comparison,
        )

    @functools.cached_property
    def _comparison(self) -> Comparison:
        return compare(self._chunk_means, self._sizes, self._test)

    @functools.cached_property
    def _means(self) -> tuple[SettledMean, ...]:
        level = self._boundary.nominal(1 - self._rule.confidence, self._at)
        return tuple(_means(self._chunk_means, self._sizes, level))

    def _test(self, differences: Floats, weights: Floats) -> Tested:
        """As `comparison.student`, but for one checkpoint of several, allowing for skewness."""
        value, error, deviations = weighted_mean(differences, weights)
        skew = skewness(deviations)
        low, high = bounds(value, error, skew, len(weights), self._level)
        p = sequential_p(value, error, skew, self._boundary, self._at)
        return Tested(value, error, low, high, p)


def _separated(p_holm: float | None, rule: Rule) -> bool:
    return p_holm is not None and p_holm <= 1 - rule.confidence


def sequential_p(value: Floats, error: Floats, skew: Floats, boundary: Boundary, at: int) -> Floats:
    """Two-sided p-values of no difference, valid whenever one stops.

    Args:
        value: differences.
        error: their standard errors.
        skew: of what they are the means of.
        boundary: of all checkpoints.
        at: index of this one.
    """
    varies = error > 0
    sign = np.where(value < 0, -1.0, 1.0)
    statistic = np.abs(value) / np.where(varies, error, 1.0)
    tail = upper_tail(statistic, sign * skew, boundary.counts[at])
    certain = np.where(value == 0, 1.0, 0.0)
    return boundary.overall(np.where(varies, np.minimum(1.0, 2 * tail), certain), at)


def _means(chunk_means: Floats, sizes: Sequence[int], level: float) -> Iterator[SettledMean]:
    weights = np.asarray(sizes, np.float64)
    if len(sizes) < 2:  # noqa: PLR2004 - nothing varies within one
        for row in chunk_means:
            yield SettledMean(float(row[0]), None)
        return
    value, error, deviations = weighted_mean(chunk_means, weights)
    low, high = bounds(value, error, skewness(deviations), len(sizes), level)
    # A divergence is never negative, and clipping never loses a true value.
    low = np.maximum(low, np.minimum(value, 0.0))
    for each in zip(value.tolist(), low.tolist(), high.tolist(), strict=True):
        yield SettledMean(each[0], Interval(*each[1:]))
