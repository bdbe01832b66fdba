"""Intervals and p-values of means that allow for skewness: no narrower than Student's on any side.

A mean of skewed values and its standard error go up and down together, so Student's t errs on one
side: where large values are rare, samples without them look both low and certain. Hall's cubic
transformation takes that out ("On the removal of skewness by transformation", Journal of the Royal
Statistical Society B 54, 1992), but errs where tails are heavy and even. Here each side is that of
the two which reaches further; and skewness counts half as much again as the sample shows, for
samples of heavy tails show less than there is. `tests/divergence/test_sequential.py` has both
kinds. The price is some width on the side of the long tail.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from kldcloud.divergence.records import Floats

CAUTION: Final = 1.5
"""Times the skewness of the sample. Means of 20 to 580 lognormal chunks with a skewness of 4 were
missed at some checkpoint 14 % of the time with 0, 5.6 % with 1 and 3.3 % with 1.5, where 5 % were
allowed."""
_FEWEST: Final = 3


def skewness(deviations: Floats) -> Floats:
    """Adjusted Fisher-Pearson coefficient along the last axis; 0 where nothing varies.

    Args:
        deviations: float64 ``[..., n]`` from the mean.
    """
    count = deviations.shape[-1]
    if count < _FEWEST:
        return np.zeros(deviations.shape[:-1])
    largest = np.max(np.abs(deviations), axis=-1, keepdims=True)
    # In units of the largest, or the squares of tiny ones would underflow.
    scaled = deviations / np.where(largest > 0, largest, 1.0)
    squares = scaled * scaled
    second = np.sum(squares, axis=-1) / count
    third = np.sum(squares * scaled, axis=-1) / count
    correction = math.sqrt(count * (count - 1)) / (count - 2)
    found: Floats = correction * third / np.where(second > 0, second, 1.0) ** 1.5
    return found


def upper_tail(statistic: Floats, skew: Floats, count: int) -> Floats:
    """One-sided p-value of a mean over its standard error, against zero and in favour of more.

    Args:
        statistic: ``t``, any shape.
        skew: of the values, `skewness`.
        count: of the values, so that t has one degree of freedom less.
    """
    from scipy.special import stdtr

    root = math.sqrt(count)
    cubic = root * _transformed(statistic / root, CAUTION * skew, count)
    tail: Floats = np.maximum(stdtr(count - 1, -statistic), stdtr(count - 1, -cubic))
    return tail


def bounds(
    value: Floats, error: Floats, skew: Floats, count: int, level: float
) -> tuple[Floats, Floats]:
    """Lower and upper end of the interval with error rate ``level``, two-sided.

    Zero is outside exactly where twice the `upper_tail` of it, or of its negative, is below
    ``level``.
    """
    from scipy.special import stdtrit

    root = math.sqrt(count)
    quantile = float(stdtrit(count - 1, 1 - level / 2))
    most = np.maximum(quantile, root * _inverse(quantile / root, CAUTION * skew, count))
    least = np.minimum(-quantile, root * _inverse(-quantile / root, CAUTION * skew, count))
    return value - most * error, value - least * error


def _transformed(u: Floats, skew: Floats, count: int) -> Floats:
    """Hall's transformation of ``t / sqrt(count)``, increasing in it."""
    return u + skew * u**2 / 3 + skew**2 * u**3 / 27 + skew / (6 * count)


def _inverse(value: float, skew: Floats, count: int) -> Floats:
    centred = value - skew / (6 * count)
    flat = np.abs(skew) < 1e-9  # noqa: PLR2004 - nothing is lost, and 0 / 0 is avoided
    slope = np.where(flat, 1.0, skew / 3)
    return np.where(flat, centred, (np.cbrt(1 + 3 * slope * centred) - 1) / slope)
