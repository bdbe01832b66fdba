"""One decision at a time: when it is made, what it says, and each number against scipy's."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from simulated_chunks import RANKED, ROWS, Floats, decided, heavy, light, precise
from statsmodels.stats.multitest import multipletests

from kldcloud.divergence.checkpoints import checkpoints, spend
from kldcloud.divergence.sequential import Rule, decide
from kldcloud.divergence.skewness import CAUTION
from kldcloud.spec.stop import StopSpec


def some(levels: Sequence[float], chunks: int, seed: int = 0) -> Floats:
    return light(np.random.default_rng(seed), 1, levels, chunks)[0]


def test_a_job_files_rule_is_the_rule() -> None:
    said = StopSpec.model_validate({"when": "precise", "half_width": "2%"})
    assert Rule(**said.model_dump()) == precise(0.02)


def test_before_the_first_checkpoint_there_is_nothing_to_say() -> None:
    assert decide(RANKED, some((1, 2), 19), [ROWS] * 19, 580) is None


def test_candidates_far_apart_are_ranked_at_the_first_checkpoint() -> None:
    found = decided(RANKED, some((3, 1, 2), 580))
    assert found.settled
    assert found.final
    assert (found.chunks, found.of, found.checkpoint, found.checkpoints) == (20, 580, 1, 16)
    assert found.saved == 1 - 20 / 580
    assert found.comparison.order == (1, 2, 0)
    assert [(rank.low, rank.high) for rank in found.comparison.ranks] == [(3, 3), (1, 1), (2, 2)]
    assert found.undecided == ()


def test_what_was_measured_beyond_the_deciding_checkpoint_changes_nothing() -> None:
    means = some((1, 1.04, 1.2), 580, seed=3)
    whole = decided(RANKED, means)
    assert 20 < whole.chunks < 580
    for count in (whole.chunks, whole.chunks + 1, whole.chunks + 100):
        assert decided(RANKED, means[:, :count], 580) == whole


def test_until_it_is_settled_the_last_checkpoint_that_was_reached_speaks() -> None:
    means = some((1, 1.001), 580)
    early = decided(RANKED, means[:, :100], 580)
    assert (early.chunks, early.settled, early.final, early.saved) == (96, False, False, 0.0)
    assert early == decided(RANKED, means[:, :96], 580)


def test_equal_candidates_never_separate_and_the_run_says_so() -> None:
    means = np.repeat(some((1,), 100), 3, axis=0)
    means[2] *= 2
    found = decided(RANKED, means)
    assert not found.settled
    assert found.final
    assert (found.chunks, found.saved) == (100, 0.0)
    assert found.undecided == ((0, 1),)
    assert [(rank.low, rank.high) for rank in found.comparison.ranks] == [(1, 2), (1, 2), (3, 3)]


def test_a_constant_difference_is_certain_at_once() -> None:
    means = np.stack([np.zeros(60), np.full(60, 0.5)])
    assert decided(RANKED, means).chunks == 20


def test_a_mean_of_zero_is_as_precise_as_can_be() -> None:
    found = decided(precise(0.01), np.zeros((1, 60)))
    assert (found.chunks, found.settled, found.means[0].half_width) == (20, True, 0.0)


@pytest.mark.parametrize("chunks", [1, 2, 19])
def test_a_text_shorter_than_the_least_is_judged_once_at_its_end(chunks: int) -> None:
    found = decided(RANKED, some((1, 5), chunks))
    assert (found.chunks, found.of, found.checkpoints, found.final) == (chunks, chunks, 1, True)
    assert found.settled == (chunks > 1)


def test_means_are_precise_at_the_first_checkpoint_where_the_widest_interval_is() -> None:
    means = some((1, 4), 580)
    found = decided(precise(0.05), means)
    assert found.settled
    assert max(mean.half_width for mean in found.means) <= 0.05
    before = checkpoints(20, 580)[found.checkpoint - 2]
    assert max(mean.half_width for mean in decided(precise(0.05), means[:, :before], 580).means) > (
        0.05
    )


def test_more_confidence_takes_more_chunks() -> None:
    means = some((1, 1.03), 580, seed=5)
    for rule in (RANKED, precise(0.04)):
        chunks = [
            decided(replace(rule, confidence=confidence), means).chunks
            for confidence in (0.8, 0.95, 0.999)
        ]
        assert chunks == sorted(chunks)
        assert chunks[0] < chunks[-1]


def test_a_decision_survives_json() -> None:
    found = decided(precise(0.05), some((1, 4), 580)).to_json_dict(["a", "b"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["order"] == ["a", "b"]
    assert found["undecided"] == []
    assert {"when", "half_width", "confidence", "least", "chunks", "of", "saved"} < set(found)


# Each number against scipy and statsmodels.


def tail(values: Floats) -> float:
    """One-sided p-value of a positive mean: the larger of Student's and Hall's."""
    count = len(values)
    t = float(stats.ttest_1samp(values, 0.0).statistic)
    gamma = CAUTION * float(stats.skew(values, bias=False))
    root = math.sqrt(count)
    hall = t + gamma * t**2 / (3 * root) + gamma**2 * t**3 / (27 * count) + gamma / (6 * root)
    return float(max(stats.t.sf(t, count - 1), stats.t.sf(hall, count - 1)))


def test_p_values_are_holms_of_those_that_hold_at_every_checkpoint() -> None:
    means = heavy(np.random.default_rng(2), 1, (1, 1.2, 1.4, 1.5), 150)[0]
    found = decided(RANKED, means)
    assert not found.settled
    boundary, at = spend(checkpoints(20, 150)), found.checkpoint - 1
    plain = [2 * tail(means[pair.worse] - means[pair.better]) for pair in found.comparison.pairs]
    for pair, p in zip(found.comparison.pairs, plain, strict=True):
        assert pair.p is not None
        if pair.p < 1:
            assert boundary.nominal(pair.p, at) == pytest.approx(p, rel=1e-6)
    holm = multipletests([pair.p for pair in found.comparison.pairs], method="holm")[1]
    assert [pair.p_holm for pair in found.comparison.pairs] == pytest.approx(holm.tolist())


def test_intervals_are_those_of_the_checkpoints_level() -> None:
    means = some((1, 1.5), 120)
    found = decided(precise(0.001, confidence=0.9), means)
    boundary = spend(checkpoints(20, 120))
    level = boundary.nominal(0.1, found.checkpoint - 1)
    for row, mean in zip(means, found.means, strict=True):
        plain = stats.ttest_1samp(row, 0.0).confidence_interval(1 - level)
        assert mean.value == pytest.approx(row.mean(), rel=1e-12)
        assert mean.interval is not None
        # One side is Student's, the other reaches further.
        assert mean.interval.low == pytest.approx(plain.low, rel=1e-9)
        assert plain.high < mean.interval.high < plain.high + 0.2 * (plain.high - plain.low)
    assert found.level == pytest.approx(boundary.nominal(0.05, found.checkpoint - 1))
    assert found.level < 0.05


def test_a_95_percent_interval_of_a_pair_excludes_zero_where_its_p_is_below_5_percent() -> None:
    random = np.random.default_rng(6)
    seen = set()
    for means in heavy(random, 60, (1, 1.15), 60):
        (pair,) = decided(RANKED, means, 580).comparison.pairs
        assert pair.interval95 is not None
        assert pair.p is not None
        assert (pair.interval95.low > 0) == (pair.p < 0.05)
        seen.add(pair.p < 0.05)
    assert seen == {True, False}


def test_unequal_chunks_weigh_by_their_positions() -> None:
    random = np.random.default_rng(1)
    sizes = random.integers(3, 300, 40).tolist()
    means = some((1, 1.5), 40)
    found = decide(RANKED, means, sizes, 40)
    assert found is not None
    count = found.chunks
    weights = np.array(sizes[:count]) / sum(sizes[:count])
    expected = (means[:, :count] * weights).sum(axis=1)
    assert [mean.value for mean in found.means] == pytest.approx(expected.tolist(), rel=1e-12)
