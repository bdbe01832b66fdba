"""KL divergence against file size: which points there are, and which of them nobody beats."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kldcloud.report.summary_shape import Candidate, Result, Summary

Metric = Literal["mean", "p99_9"]


@dataclass(frozen=True, slots=True)
class SizePoint:
    """One candidate on one corpus.

    Attributes:
        place: its index among the candidates of the run.
        name: as the summary has it.
        bytes: of its file.
        bits_per_weight: None where that is unknown.
        kld: the mean or the 99.9 % quantile of its KL divergence, in nats.
        error: standard error of the mean, cluster-robust by chunk; None of a quantile.
        interval95: of the mean; None of a quantile, or with too few chunks.
        on_frontier: whether no other candidate is as small and as close, and better in one.
    """

    place: int
    name: str
    bytes: int
    bits_per_weight: float | None
    kld: float
    error: float | None
    interval95: tuple[float, float] | None
    on_frontier: bool


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A candidate that has no place in the plot, and why."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class SizePlot:
    """All candidates on one corpus, in the order of the job."""

    metric: Metric
    points: tuple[SizePoint, ...]
    left_out: tuple[LeftOut, ...]

    def frontier(self) -> list[SizePoint]:
        """The points of the frontier, from the smallest file to the largest."""
        chosen = [point for point in self.points if point.on_frontier]
        return sorted(chosen, key=lambda point: (point.bytes, point.place))


def size_plot(summary: Summary, corpus: str, metric: Metric) -> SizePlot:
    """What can be drawn of a corpus on a logarithmic axis: positive KL divergences with a size."""
    results = {each.candidate: each for each in summary.results if each.corpus == corpus}
    left_out, drawn = [], []
    for place, candidate in enumerate(summary.candidates):
        measured = results.get(candidate.name)
        result = measured.result if measured else None
        value = _value(result, metric)
        if measured is None:
            left_out.append(LeftOut(candidate.name, "not measured yet"))
        elif result is None:
            left_out.append(LeftOut(candidate.name, "failed"))
        elif candidate.bytes is None:
            left_out.append(LeftOut(candidate.name, "its file size is not known"))
        elif value is None:
            left_out.append(LeftOut(candidate.name, "no such number"))
        elif value <= 0:
            left_out.append(LeftOut(candidate.name, "no more than zero"))
        else:
            drawn.append((place, candidate, candidate.bytes, value, result))
    best = pareto([size for _, _, size, _, _ in drawn], [value for _, _, _, value, _ in drawn])
    points = tuple(
        _point(place, candidate, size, value, result, metric, on_frontier=at in best)
        for at, (place, candidate, size, value, result) in enumerate(drawn)
    )
    return SizePlot(metric, points, tuple(left_out))


def pareto(sizes: Sequence[float], values: Sequence[float]) -> frozenset[int]:
    """Indices of the points that no other beats: none has size and value as small, and one smaller.

    Equal points do not beat each other.
    """
    best: set[int] = set()
    least = float("inf")
    order = sorted(range(len(sizes)), key=lambda at: (sizes[at], values[at]))
    for _, group in itertools.groupby(order, key=lambda at: sizes[at]):
        same_size = list(group)
        lowest = values[same_size[0]]
        if lowest < least:
            best.update(at for at in same_size if values[at] == lowest)
            least = lowest
    return frozenset(best)


def _value(result: Result | None, metric: Metric) -> float | None:
    if result is None:
        return None
    return result.kld.mean.value if metric == "mean" else result.kld.p99_9


def _point(
    place: int,
    candidate: Candidate,
    size: int,
    value: float,
    result: Result,
    metric: Metric,
    *,
    on_frontier: bool,
) -> SizePoint:
    mean = result.kld.mean
    low, high = mean.interval95 or (None, None)
    known = metric == "mean" and low is not None and high is not None
    return SizePoint(
        place=place,
        name=candidate.name,
        bytes=size,
        bits_per_weight=candidate.bits_per_weight,
        kld=value,
        error=mean.error if metric == "mean" else None,
        interval95=(low, high) if known and low is not None and high is not None else None,
        on_frontier=on_frontier,
    )
