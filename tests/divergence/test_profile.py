"""Binned means against plain numpy and statsmodels, whatever shards the records came in."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import statsmodels.api as sm
from synthetic_records import records

from kldcloud.divergence.profile import CURVE_SHARES, ENTROPY_EDGES, BinnedMean, Profile
from kldcloud.divergence.records import TokenRecords

CONTEXT = 64
CLASSES = np.arange(50, dtype=np.int8) % 3
"""Of the tokens that synthetic records have."""


def profile(source: TokenRecords, shard: int = 100) -> Profile:
    found = Profile(CONTEXT, CLASSES, 4)
    for start in range(0, int(source.chunk.max()) + 1, shard):
        found.add(source.select((source.chunk >= start) & (source.chunk < start + shard)))
    return found


def check(found: BinnedMean, source: TokenRecords, rows: np.ndarray) -> None:
    """A bin against the cluster-robust regression on a constant, with statsmodels' own factor."""
    kld, groups = source.kld[rows], source.chunk[rows]
    assert found.tokens == rows.sum() > 0
    fit = sm.OLS(kld, np.ones(len(kld))).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": True}
    )
    assert found.mean == pytest.approx(fit.params[0], rel=1e-12)
    assert found.error == pytest.approx(fit.bse[0], rel=1e-10)


def test_each_bin_of_positions_is_their_mean_with_the_cluster_robust_error() -> None:
    source = records(40)
    source = replace(source, position=source.position + np.int32(1))  # 32..62, as chunks of 64 have
    bins = profile(source).by_position()
    assert (bins[0].low, bins[-1].high) == (32.0, 63.0)
    assert [one.high for one in bins[:-1]] == [two.low for two in bins[1:]]
    for each in bins:
        check(each, source, (source.position >= each.low) & (source.position < each.high))


def test_each_bin_of_confidence_is_about_the_bases_entropy() -> None:
    source = records(40, seed=3)
    bins = profile(source).by_confidence()
    assert tuple(each.low for each in bins) == ENTROPY_EDGES
    assert bins[-1].high == math.inf
    for each in bins[1:]:
        check(each, source, (source.entropy_base >= each.low) & (source.entropy_base < each.high))
    assert sum(each.tokens for each in bins) == len(source)


def test_each_class_is_about_the_token_that_follows() -> None:
    source = records(40, seed=4)
    found = profile(source).by_class()
    assert len(found) == 4
    for at, each in enumerate(found[:3]):
        check(each, source, source.token % 3 == at)
    assert found[3].tokens == 0
    assert math.isnan(found[3].mean)


def test_a_token_beyond_the_vocabulary_counts_as_its_last() -> None:
    source = records(2)
    beyond = replace(source, token=np.full(len(source), 1 << 30, np.int32))
    assert [each.tokens for each in profile(beyond).by_class()] == [0, len(source), 0, 0]


def test_a_bin_that_only_some_chunks_reach_counts_those_alone() -> None:
    source = records(6)
    entropy = np.where(source.chunk < 3, 0.01, 9.0)
    bins = profile(replace(source, entropy_base=entropy)).by_confidence()
    check(bins[0], source, source.chunk < 3)
    check(bins[-1], source, source.chunk >= 3)
    assert [each.tokens for each in bins[1:-1]] == [0] * (len(bins) - 2)
    assert all(math.isnan(each.mean) and math.isnan(each.error) for each in bins[1:-1])


def test_shards_leave_no_trace() -> None:
    source = records(24, seed=5)
    whole = profile(source)
    for shard in (1, 5, 7):
        cut = profile(source, shard)
        assert cut.by_position() == whole.by_position()
        assert repr(cut.by_confidence()) == repr(whole.by_confidence())


def test_one_chunk_has_means_and_no_errors() -> None:
    for each in profile(records(1)).by_position():
        assert math.isfinite(each.mean)
        assert math.isnan(each.error)


def test_an_entropy_that_rounding_left_below_zero_is_in_the_first_bin() -> None:
    source = records(2)
    below = replace(source, entropy_base=np.full(len(source), -1e-16))
    assert profile(below).by_confidence()[0].tokens == len(source)


def test_a_short_chunk_has_as_many_bins_as_positions() -> None:
    found = Profile(8, CLASSES, 4)
    source = records(3, rows=3)
    found.add(replace(source, position=source.position + np.int32(1)))
    assert [each.low for each in found.by_position()] == [4.0, 5.0, 6.0]
    assert [each.tokens for each in found.by_position()] == [3, 3, 3]


def test_nothing_is_no_profile_and_no_error() -> None:
    found = Profile(CONTEXT, CLASSES, 4)
    found.add(records(1).select(slice(0, 0)))
    assert {each.tokens for each in found.by_position()} == {0}


def test_shares_of_a_curve_ascend_and_end_at_the_whole() -> None:
    assert list(CURVE_SHARES) == sorted(set(CURVE_SHARES))
    assert CURVE_SHARES[-1] == 1.0
    assert {0.5, 0.9, 0.99, 0.999} <= set(CURVE_SHARES)
