"""Intervals that allow for skewness: against scipy, and against what they are meant to mend."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from kldcloud.divergence.skewness import CAUTION, bounds, skewness, upper_tail

VALUES = np.random.default_rng(3).gamma(0.8, 2.0, (4, 30))


def test_skewness_is_scipys_unbiased_one() -> None:
    found = skewness(VALUES - VALUES.mean(axis=1, keepdims=True))
    assert found == pytest.approx(stats.skew(VALUES, axis=1, bias=False), rel=1e-12)


def test_what_does_not_vary_has_none_and_tiny_numbers_have_theirs() -> None:
    flat = np.zeros((2, 30))
    assert skewness(flat).tolist() == [0.0, 0.0]
    assert skewness(np.array([[1.0, -1.0]])).tolist() == [0.0]
    deviations = VALUES - VALUES.mean(axis=1, keepdims=True)
    assert skewness(deviations * 1e-200) == pytest.approx(skewness(deviations), rel=1e-12)


def hall(t: float, skew: float, count: int) -> float:
    """Hall's transformation, as a polynomial in t."""
    root = math.sqrt(count)
    return t + skew * t**2 / (3 * root) + skew**2 * t**3 / (27 * count) + skew / (6 * root)


@pytest.mark.parametrize("skew", [-3.0, -0.4, 0.0, 1e-12, 0.4, 2.0])
def test_each_end_is_students_or_halls_whichever_is_further(skew: float) -> None:
    count, level, value, error = 25, 0.01, 3.0, 0.2
    quantile = float(stats.t.ppf(1 - level / 2, count - 1))
    low, high = bounds(np.array(value), np.array(error), np.array(skew), count, level)
    for end, sign in ((low, 1), (high, -1)):

        def off(t: float, sign: int = sign) -> float:
            return hall(t, CAUTION * skew, count) - sign * quantile

        theirs: Any = optimize.brentq(off, -400, 400, xtol=1e-12)
        furthest = max(sign * theirs, quantile)
        assert (value - float(end)) / error * sign == pytest.approx(furthest, rel=1e-9)


@pytest.mark.parametrize("skew", [-2.0, 0.0, 1.5])
def test_an_end_touches_zero_where_the_tail_is_half_the_level(skew: float) -> None:
    count, level, error = 40, 0.003, 0.7
    low, _ = bounds(np.array(0.0), np.array(error), np.array(skew), count, level)
    statistic = -float(low) / error
    tail = upper_tail(np.array(statistic), np.array(skew), count)
    assert float(tail) == pytest.approx(level / 2, rel=1e-9)
    _, high = bounds(np.array(0.0), np.array(error), np.array(-skew), count, level)
    assert float(high) == pytest.approx(-float(low), rel=1e-12)


def test_students_tail_is_the_least_there_is() -> None:
    statistic = np.linspace(0, 8, 30)
    for skew in (-1.0, 0.0, 1.0):
        tail = upper_tail(statistic, np.full(30, skew), 20)
        assert (tail >= stats.t.sf(statistic, 19) * (1 - 1e-12)).all()
    assert upper_tail(statistic, np.zeros(30), 20) == pytest.approx(stats.t.sf(statistic, 19))


@pytest.mark.parametrize("name", ["exponential", "lognormal", "pareto", "student"])
def test_it_covers_where_students_interval_does_not_and_keeps_to_it_where_it_does(
    name: str,
) -> None:
    random = np.random.default_rng(8)
    count, rounds, level = 25, 20_000, 0.05
    draws = {
        "exponential": lambda: random.exponential(1.0, (rounds, count)),
        "lognormal": lambda: random.lognormal(-0.32, 0.8, (rounds, count)),
        "pareto": lambda: (random.pareto(3.0, (rounds, count)) + 1) / 1.5,
        "student": lambda: 1 + random.standard_t(3, (rounds, count)),
    }
    values = draws[name]()
    value = values.mean(axis=1)
    error = values.std(axis=1, ddof=1) / math.sqrt(count)
    skew = skewness(values - value[:, None])

    def missed(skew: Any) -> float:
        low, high = bounds(value, error, skew, count, level)
        return float(((low > 1) | (high < 1)).mean())

    plain, careful = missed(np.zeros(rounds)), missed(skew)
    sys.stdout.write(f"{name}: missed by Student's t {plain:.3f}, with allowance {careful:.3f}\n")
    if name == "student":
        assert plain - 0.01 < careful <= plain
    else:
        assert plain > 0.07
        assert careful < 0.055
