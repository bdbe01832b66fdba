"""Estimates from means: naive and cluster-robust errors, the delta method, intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kldcloud.divergence.moments import INDEX, Moments, cross_products
from kldcloud.divergence.records import Floats
from kldcloud.divergence.skewness import bounds, skewness

_CONFIDENCE = 0.95
_FEW = 30
"""Positions of the rarer kind: fewer say too little about how they scatter over chunks, and none
say nothing. Of 1 in 1000, intervals of 16 chunks of 255 covered 90 % without the binomial ones,
those of 7 chunks 82 %; where none was seen, they had no width at all."""


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with two standard errors.

    Attributes:
        value: the estimate.
        error_naive: standard error if positions were independent of one another.
        error: standard error robust to any correlation inside a chunk; None of a single chunk.
        interval95: from ``error`` and Student's t; None of a single chunk.
    """

    value: float
    error_naive: float
    error: float | None
    interval95: Interval | None

    def to_json_dict(self) -> dict[str, object]:
        interval = self.interval95
        return {
            "value": finite(self.value),
            "error_naive": finite(self.error_naive),
            "error": finite(self.error),
            "interval95": interval and [finite(interval.low), finite(interval.high)],
        }


class Means:
    """Means of the variables, and the covariance of those means in two ways.

    Naive: covariance between positions over their number. Robust: chunks are clusters; with S_g
    the sum of deviations from the overall mean in chunk g, G chunks and n positions, it is
    ``G / (G - 1) * sum_g S_g S_g' / n**2`` (Cameron and Miller, "A Practitioner's Guide to
    Cluster-Robust Inference", Journal of Human Resources 50, 2015, with their finite-sample factor
    for an intercept alone and their advice of t with G - 1 degrees of freedom).

    Args:
        total: of all positions.
        sizes: positions of each chunk.
        means: of each chunk.
        index: where each variable stands, if these are not all of them.
        level: two-sided error of each interval where a run might have stopped earlier
            (`sequential.Decision.level`), which then allows for skewness too; None for the
            ordinary intervals of a run that could not.
    """

    def __init__(
        self,
        total: Moments,
        sizes: Sequence[int],
        means: Sequence[Floats],
        index: Mapping[str, int] = INDEX,
        *,
        level: float | None = None,
    ) -> None:
        self._index = index
        self._mean = total.mean
        self.comoment = total.comoment
        n = self._count = total.count
        self._naive = (
            total.comoment / (n - 1) / n if n > 1 else np.full_like(total.comoment, np.nan)
        )
        self._robust: Floats | None = None
        self._t = math.nan
        clusters = len(sizes)
        if clusters > 1:
            deviations = (np.stack(means) - total.mean).T * np.asarray(sizes, np.float64)
            self._robust = cross_products(deviations) * (clusters / (clusters - 1)) / n / n
            self._t = _student_t(clusters - 1)
            self._deviations = deviations
        self._level = level

    def __getitem__(self, name: str) -> float:
        return float(self._mean[self._index[name]])

    def mean(self, name: str, *, low: float = -math.inf, high: float = math.inf) -> Estimate:
        """A variable's mean; its interval ends where the variable's range does."""
        return self.estimate(self[name], {name: 1.0}, low=low, high=high)

    def share(self, name: str) -> Estimate:
        """The share of positions with a flag.

        Where few positions differ from the others, its interval is no narrower than that of Clopper
        and Pearson ("The use of confidence or fiducial limits illustrated in the case of the
        binomial", Biometrika 26, 1934) would be if positions were independent.
        """
        found = self.mean(name, low=0.0, high=1.0)
        flagged = round(found.value * self._count)
        if found.interval95 is None or min(flagged, self._count - flagged) >= _FEW:
            return found
        level = self._level or 1 - _CONFIDENCE
        least, most = _binomial(flagged, self._count, level)
        wider = Interval(min(found.interval95.low, least), max(found.interval95.high, most))
        return replace(found, interval95=wider)

    def estimate(
        self,
        value: float,
        gradient: Mapping[str, float],
        *,
        low: float = -math.inf,
        high: float = math.inf,
    ) -> Estimate:
        """A function of the means by the delta method: ``gradient`` holds its derivatives."""
        interval = None
        by_place = {self._index[name]: slope for name, slope in gradient.items()}
        error = _error(self._robust, by_place)
        if error is not None:
            least, most = self._ends(value, error, gradient)
            # Clipping never loses a true value; the estimate itself stays inside all the same.
            interval = Interval(max(least, min(low, value)), min(most, max(high, value)))
        naive = _error(self._naive, by_place)
        return Estimate(value, math.nan if naive is None else naive, error, interval)

    def _ends(
        self, value: float, error: float, gradient: Mapping[str, float]
    ) -> tuple[float, float]:
        if self._level is None:
            return value - self._t * error, value + self._t * error
        influence = np.zeros(self._deviations.shape[1])
        for name, slope in gradient.items():
            influence += slope * self._deviations[self._index[name]]
        least, most = bounds(
            np.array(value), np.array(error), skewness(influence), len(influence), self._level
        )
        return float(least), float(most)


def _error(covariance: Floats | None, gradient: Mapping[int, float]) -> float | None:
    if covariance is None:
        return None
    variance = 0.0
    for a, slope_a in gradient.items():
        for b, slope_b in gradient.items():
            variance += slope_a * slope_b * float(covariance[a, b])
    # Rounding may leave a tiny negative variance of a difference that does not vary.
    return math.sqrt(variance) if variance > 0 or math.isnan(variance) else 0.0


def exponential(logarithm: Estimate) -> Estimate:
    """Exponential of an estimate: errors by the delta method, interval from interval."""
    value = exp(logarithm.value)
    interval = logarithm.interval95
    return Estimate(
        value,
        value * logarithm.error_naive,
        None if logarithm.error is None else value * logarithm.error,
        interval and Interval(exp(interval.low), exp(interval.high)),
    )


def _binomial(flagged: int, count: int, level: float) -> tuple[float, float]:
    """Both ends of Clopper and Pearson's interval of a share."""
    from scipy.special import betaincinv

    rest = count - flagged
    least = float(betaincinv(flagged, rest + 1, level / 2)) if flagged else 0.0
    most = float(betaincinv(flagged + 1, rest, 1 - level / 2)) if rest else 1.0
    return least, most


def _student_t(degrees: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + _CONFIDENCE) / 2))


def exp(value: float) -> float:
    """Infinity where the result is too large for a float64."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity: None stands for both."""
    return value if value is not None and math.isfinite(value) else None
