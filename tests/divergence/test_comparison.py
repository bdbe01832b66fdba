"""Paired comparisons against scipy and statsmodels, and ranks that say no more than the data do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.multitest import multipletests

from kldcloud.divergence.comparison import Comparison, PairedDifference, RankRange, compare, holm

CHUNKS = 40


def chunk_means(*levels: float, seed: int = 1, noise: float = 0.001) -> Any:
    """Candidates at these levels; what chunks do to all of them alike is far larger."""
    random = np.random.default_rng(seed)
    shared = random.gamma(4.0, 0.05, CHUNKS)
    own = random.normal(0.0, noise, (len(levels), CHUNKS))
    return shared + np.array(levels)[:, None] + own


def pair(comparison: Comparison, better: int, worse: int) -> PairedDifference:
    (found,) = (p for p in comparison.pairs if (p.better, p.worse) == (better, worse))
    return found


def test_with_chunks_of_one_size_it_is_the_paired_t_test() -> None:
    means = chunk_means(0.02, 0.0205)
    found = pair(compare(means, [64] * CHUNKS), 0, 1)
    theirs = stats.ttest_rel(means[1], means[0])
    interval = theirs.confidence_interval(0.95)
    assert found.value == pytest.approx(np.mean(means[1] - means[0]), rel=1e-12)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert found.interval95 is not None
    assert found.interval95.low == pytest.approx(interval.low, rel=1e-9)
    assert found.interval95.high == pytest.approx(interval.high, rel=1e-9)


def test_with_chunks_of_several_sizes_it_is_the_cluster_robust_error_of_positions() -> None:
    random = np.random.default_rng(5)
    sizes = random.integers(3, 30, CHUNKS)
    groups = np.repeat(np.arange(CHUNKS), sizes)
    a = random.gamma(2.0, 0.1, sizes.sum()) + random.normal(0, 0.02, CHUNKS)[groups]
    b = a + 0.01 + random.normal(0, 0.01, CHUNKS)[groups] + random.normal(0, 0.02, len(a))
    means = np.stack([[row[groups == g].mean() for g in range(CHUNKS)] for row in (a, b)])
    found = pair(compare(means, sizes.tolist()), 0, 1)
    fit = sm.OLS(b - a, np.ones(len(a))).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": True}, use_t=True
    )
    assert found.value == pytest.approx(fit.params[0], rel=1e-10)
    assert found.error == pytest.approx(fit.bse[0], rel=1e-10)
    assert found.p == pytest.approx(fit.pvalues[0], rel=1e-8)
    low, high = fit.conf_int()[0]
    assert found.interval95 is not None
    assert (found.interval95.low, found.interval95.high) == pytest.approx((low, high), rel=1e-8)


def test_holms_adjustment_is_that_of_statsmodels() -> None:
    values = np.random.default_rng(2).beta(0.3, 2.0, 50).tolist()
    theirs = multipletests(values, method="holm")[1]
    assert holm(values) == pytest.approx(theirs.tolist(), rel=1e-12)


def test_what_was_not_tested_counts_in_the_family_and_stays_unknown() -> None:
    assert holm([0.01, None, 0.02]) == [0.03, None, 0.04]
    assert holm([]) == []


def test_ranks_are_one_number_where_the_data_decide_and_a_range_where_they_do_not() -> None:
    # Between the second and the third there is nothing but noise.
    comparison = compare(chunk_means(0.3, 0.01, 0.1, 0.1, noise=0.002), [64] * CHUNKS)
    assert comparison.order[0] == 1
    assert set(comparison.order[1:3]) == {2, 3}
    assert comparison.ranks == (
        RankRange(4, 4),
        RankRange(1, 1),
        RankRange(2, 3),
        RankRange(2, 3),
    )
    undecided = [p for p in comparison.neighbours() if not p.distinguishable]
    assert [{p.better, p.worse} for p in undecided] == [{2, 3}]


def test_ranges_may_overlap_without_being_equal() -> None:
    def row(level: float, wobble: float) -> Any:
        return level + wobble * np.resize([1.0, -1.0], CHUNKS)

    comparison = compare(
        np.stack([row(0.0, 0.001), row(0.0003, 0.0), row(0.0006, 0.001)]), [1] * CHUNKS
    )
    assert [p.distinguishable for p in comparison.neighbours()] == [False, False]
    assert pair(comparison, 0, 2).distinguishable
    assert comparison.ranks == (RankRange(1, 2), RankRange(1, 3), RankRange(2, 3))


def test_what_both_share_cancels() -> None:
    means = chunk_means(0.02, 0.021)
    alone = means.std(axis=1, ddof=1) / math.sqrt(CHUNKS)
    error = pair(compare(means, [64] * CHUNKS), 0, 1).error
    assert error is not None
    assert error < alone.min() / 20


def test_a_candidate_against_its_copy_is_not_distinguishable() -> None:
    means = np.repeat(chunk_means(0.02), 2, axis=0)
    found = pair(compare(means, [64] * CHUNKS), 0, 1)
    assert (found.value, found.error, found.p, found.distinguishable) == (0.0, 0.0, 1.0, False)


def test_a_constant_difference_is_certain() -> None:
    means = np.stack([np.zeros(CHUNKS), np.full(CHUNKS, 0.5)])
    found = pair(compare(means, [64] * CHUNKS), 0, 1)
    assert (found.p, found.distinguishable) == (0.0, True)


def test_a_single_chunk_decides_nothing() -> None:
    comparison = compare(np.array([[0.1], [0.2], [0.3]]), [64])
    assert all(each.p is None and each.error is None for each in comparison.pairs)
    assert set(comparison.ranks) == {RankRange(1, 3)}


def test_a_single_candidate_is_first() -> None:
    comparison = compare(np.array([[0.1, 0.2]]), [64, 64])
    assert comparison.ranks == (RankRange(1, 1),)
    assert comparison.pairs == ()


def test_the_error_of_all_verdicts_together_is_kept() -> None:
    """Four candidates that differ by noise alone: any verdict at all is wrong."""
    random = np.random.default_rng(11)
    rounds, wrong = 1500, 0
    for _ in range(rounds):
        shared = random.gamma(4.0, 0.05, CHUNKS)
        means = shared + random.gamma(2.0, 0.01, (4, CHUNKS))
        wrong += any(p.distinguishable for p in compare(means, [64] * CHUNKS).pairs)
    assert wrong / rounds < 0.05 + 2 * math.sqrt(0.05 * 0.95 / rounds)
    assert wrong / rounds > 0.02, "far too careful: real differences would go unseen"
