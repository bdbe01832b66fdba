"""Error spent over checkpoints: against integrals of the normal distribution and known tables."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from kldcloud.divergence.checkpoints import SPENT, Boundary, checkpoints, spend

COUNTS = checkpoints(20, 580)


def deviate(boundary: Boundary, level: float, at: int) -> float:
    return float(-stats.norm.ppf(boundary.nominal(level, at) / 2))


def test_checkpoints_grow_by_a_quarter_up_to_the_whole_text() -> None:
    assert COUNTS[:4] == (20, 25, 32, 40)
    assert COUNTS[-1] == 580
    for earlier, later in itertools.pairwise(COUNTS):
        assert 1.1 <= later / earlier < 1.4


@pytest.mark.parametrize(("least", "chunks"), [(8, 8), (20, 20), (20, 21), (20, 3), (20, 1)])
def test_a_short_text_has_its_end_alone(least: int, chunks: int) -> None:
    assert checkpoints(least, chunks) == (chunks,)


@pytest.mark.parametrize("chunks", [23, 100, 581, 10_000])
def test_a_checkpoint_saves_a_tenth_or_is_left_out(chunks: int) -> None:
    found = checkpoints(20, chunks)
    assert found[-1] == chunks
    assert all(count * 1.1 <= chunks for count in found[:-1])
    assert sorted(set(found)) == list(found)


def test_five_equal_steps_give_the_published_boundary() -> None:
    """What programs for clinical trials print for it at 5 % (R's ldbounds, spending function 2)."""
    published = (2.438, 2.427, 2.410, 2.397, 2.386)
    boundary = spend((1, 2, 3, 4, 5))
    # They spend all of it.
    found = [deviate(boundary, 0.05 / SPENT, at) for at in range(5)]
    assert found == pytest.approx(published, abs=2e-3)


@pytest.mark.parametrize("level", [0.05, 0.01, 0.05 / 15])
def test_what_leaves_the_boundary_is_what_may_be_spent(level: float) -> None:
    """Genz's integration of the joint normal distribution of means, instead of a recursion."""
    counts = (20, 25, 32, 60)
    boundary = spend(counts)
    bounds = np.array([deviate(boundary, level, at) for at in range(4)])
    times = np.array(counts) / counts[-1]
    for upto in (2, 3, 4):
        some = times[:upto]
        correlation = np.sqrt(np.minimum.outer(some, some) / np.maximum.outer(some, some))
        joint = stats.multivariate_normal(
            cov=correlation, abseps=1e-8, releps=1e-8, maxpts=2_000_000, seed=1
        )
        stay = joint.cdf(bounds[:upto], lower_limit=-bounds[:upto])
        spent = SPENT * level * math.log1p((math.e - 1) * some[-1])
        assert 1 - stay == pytest.approx(spent, rel=5e-3)


def test_a_mean_that_is_looked_at_as_often_leaves_it_no_more_often() -> None:
    random = np.random.default_rng(4)
    boundary = spend(COUNTS)
    steps = np.diff([0, *COUNTS])
    sums = np.cumsum(random.normal(size=(100_000, len(COUNTS))) * np.sqrt(steps), axis=1)
    bounds = np.array([deviate(boundary, 0.05, at) for at in range(len(COUNTS))])
    left = np.abs(sums) / np.sqrt(COUNTS) > bounds
    assert left.any(axis=1).mean() == pytest.approx(0.05 * SPENT, abs=0.0025)
    once = np.abs(sums) / np.sqrt(COUNTS) > stats.norm.ppf(0.975)
    assert once.any(axis=1).mean() > 0.15, "what looking 16 times with one look's level would do"


@pytest.mark.parametrize("counts", [(50,), (20, 25, 32), COUNTS, checkpoints(8, 5000)])
def test_a_smaller_error_asks_more_at_every_checkpoint(counts: tuple[int, ...]) -> None:
    boundary = spend(counts)
    assert (np.diff(boundary.bounds, axis=1) > 0).all()
    assert (np.diff(boundary.deviates) > 0).all()
    # More than one look alone would ask.
    assert (boundary.bounds > boundary.deviates).all()


def test_a_sequential_p_value_undoes_the_nominal_level() -> None:
    boundary = spend(COUNTS)
    levels = np.geomspace(1e-11, 0.4, 60)
    for at in (0, 7, len(COUNTS) - 1):
        nominal = np.array([boundary.nominal(level, at) for level in levels])
        assert boundary.overall(nominal, at) == pytest.approx(levels, rel=1e-9)


def test_interpolation_between_the_grids_levels_loses_little() -> None:
    boundary = spend(COUNTS)
    share = SPENT * math.log1p((math.e - 1) * COUNTS[0] / COUNTS[-1])
    for level in (0.1, 0.05, 0.05 / 3, 1e-3, 1e-6, 1e-10):
        exact = -stats.norm.ppf(level * share / 2)
        assert deviate(boundary, level, 0) == pytest.approx(exact, abs=2e-3)


def test_p_values_that_say_nothing_are_one_and_none_is_zero() -> None:
    boundary = spend(COUNTS)
    assert boundary.overall(np.array([1.0, 0.7]), 3).tolist() == [1.0, 1.0]
    assert 0 < float(boundary.overall(np.array(0.0), 3)) < 1e-11
