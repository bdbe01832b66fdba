"""The macro average against numpy and against a simulation of its error."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kldcloud.divergence.macro_average import macro_average


def test_it_is_the_mean_and_the_error_of_independent_estimates() -> None:
    random = np.random.default_rng(3)
    values, errors = random.gamma(2.0, 0.1, 7), random.gamma(2.0, 0.01, 7)
    found = macro_average(values.tolist(), errors.tolist())
    assert found.value == pytest.approx(np.mean(values), rel=1e-14)
    assert found.error == pytest.approx(np.sqrt(np.sum(errors**2)) / 7, rel=1e-14)


def test_a_long_corpus_weighs_no_more_than_a_short_one() -> None:
    """Means of samples of very different sizes: their average varies as its error says."""
    random = np.random.default_rng(4)
    sizes, spreads = [4, 400], [0.2, 0.1]
    rounds = 20_000
    means = [
        spread * random.standard_normal((rounds, size)).mean(axis=1) + level
        for size, spread, level in zip(sizes, spreads, [1.0, 3.0], strict=True)
    ]
    errors = [spread / math.sqrt(size) for size, spread in zip(sizes, spreads, strict=True)]
    found = macro_average([1.0, 3.0], errors)
    averages = (means[0] + means[1]) / 2
    assert found.value == 2.0
    assert found.value == pytest.approx(averages.mean(), abs=0.003)
    assert found.error == pytest.approx(averages.std(ddof=1), rel=0.03)


def test_two_cuts_of_one_text_are_no_two_samples() -> None:
    """The same chunk means twice, and another text: an average varies as its error says."""
    random = np.random.default_rng(5)
    one, other = random.standard_normal((2, 20_000, 50)).mean(axis=2)
    found = macro_average([0.0, 0.0, 0.0], [1 / math.sqrt(50)] * 3, ["a", "b", "a"])
    averages = (one + one + other) / 3
    assert found.error == pytest.approx(averages.std(ddof=1), rel=0.03)
    apart = macro_average([0.0, 0.0, 0.0], [1 / math.sqrt(50)] * 3).error
    assert apart == pytest.approx(found.error * math.sqrt(3 / 5), rel=1e-12)


def test_without_one_of_the_errors_there_is_none() -> None:
    found = macro_average([1.0, 2.0], [0.1, None])
    assert (found.value, found.error) == (1.5, None)


def test_tiny_errors_do_not_vanish() -> None:
    assert macro_average([0.0, 0.0], [1e-200, 1e-200]).error == pytest.approx(math.sqrt(2) * 5e-201)
