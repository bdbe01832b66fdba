"""Stopping when decided: the promise held in simulation, and each decision against scipy's."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy import stats
from simulated_chunks import Floats, heavy, light, tokens, unlike
from statsmodels.stats.multitest import multipletests

from kldcloud.divergence.checkpoints import checkpoints, spend
from kldcloud.divergence.sequential import Decision, Rule, decide
from kldcloud.divergence.skewness import CAUTION, bounds, skewness
from kldcloud.spec.stop import StopSpec

ROWS = 255
RANKED = Rule("ranked", None, 0.95, 20)
CORPORA = 2000
MANY = 10_000
Simulation = Callable[[np.random.Generator, int, Sequence[float], int], Floats]


def precise(half_width: float, confidence: float = 0.95) -> Rule:
    return Rule("precise", half_width, confidence, 20)


def decided(rule: Rule, chunk_means: Floats, of: int | None = None) -> Decision:
    found = decide(rule, chunk_means, [ROWS] * chunk_means.shape[1], of or chunk_means.shape[1])
    assert found is not None
    return found


def some(levels: Sequence[float], chunks: int, seed: int = 0) -> Floats:
    return light(np.random.default_rng(seed), 1, levels, chunks)[0]


# What a decision is.


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


def test_the_same_from_the_longest_interval_that_is_narrow_enough() -> None:
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


# The promise.


@dataclass(frozen=True)
class Case:
    """Corpora to rank, or to know the means of."""

    name: str
    simulate: Simulation
    levels: tuple[float, ...]
    chunks: int
    rule: Rule = RANKED
    saves: float = 0.0


APART = (1.0, 1.5, 2.5, 4.0)
CASES = [
    Case("light tails, apart", light, APART, 580, saves=0.9),
    Case("light tails, a ladder", light, (1, 1.06, 1.15, 1.3), 580, saves=0.5),
    Case("heavy tails, apart", heavy, APART, 300, saves=0.3),
    Case("correlated tokens, apart", tokens, APART, 150, saves=0.5),
    Case("heavy tails, nearly tied", heavy, (1, 1.02), 60),
    Case("correlated tokens, tied", tokens, (1, 1), 60),
    Case("heavy tails, tied", heavy, (1, 1), 60),
    Case("unlike tails, tied", unlike, (1, 1), 60),
    Case("a tie in a ladder", light, (1, 1, 2, 4), 60),
    Case("light tails, precise", light, (1,), 580, precise(0.04), saves=0.4),
    Case("heavy tails, precise", heavy, (1,), 150, precise(0.4)),
    Case("correlated tokens, precise", tokens, (1,), 150, precise(0.3)),
]
MORE = [
    Case("light tails, nearly tied", light, (1, 1.005), 200),
    Case("light tails, tied", light, (1, 1), 580),
    Case("unlike tails, tied, long", unlike, (1, 1), 580),
    Case("eight candidates", heavy, (1, 1, 1, 2, 2, 3, 3, 4), 200),
    Case("heavy tails, two precise", heavy, (1, 2), 580, precise(0.15)),
]


@dataclass(frozen=True)
class Outcome:
    wrong: float
    settled: float
    saved: float


def simulated(case: Case, corpora: int) -> Outcome:
    """How often a decision says anything wrong: of a pair of candidates, or of a mean."""
    random = np.random.default_rng(len(case.name))
    wrong, settled, saved, done = 0, 0, 0.0, 0
    while done < corpora:
        few = min(100, corpora - done)
        for chunk_means in case.simulate(random, few, case.levels, case.chunks):
            found = decided(case.rule, chunk_means)
            wrong += says_wrong(found, case.levels)
            settled += found.settled
            saved += found.saved
        done += few
    outcome = Outcome(wrong / corpora, settled / corpora, saved / corpora)
    sys.stdout.write(
        f"{case.name:28s}{case.chunks:5d} chunks  wrong {outcome.wrong:7.2%}  "
        f"settled {outcome.settled:7.2%}  saved {outcome.saved:6.1%}\n"
    )
    return outcome


def says_wrong(found: Decision, levels: Sequence[float]) -> bool:
    if found.rule.when == "precise":
        return any(
            mean.interval is None or not mean.interval.low <= level <= mean.interval.high
            for mean, level in zip(found.means, levels, strict=True)
        )
    undecided = set(found.undecided)
    return any(
        levels[pair.better] >= levels[pair.worse]
        for pair in found.comparison.pairs
        if (pair.better, pair.worse) not in undecided
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_less_is_wrong_than_the_confidence_leaves_room_for(case: Case) -> None:
    outcome = simulated(case, CORPORA)
    assert outcome.wrong < 1 - case.rule.confidence
    assert outcome.saved >= case.saves


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "case",
    [*CASES, *(replace(case, chunks=25) for case in CASES), *MORE],
    ids=lambda case: case.name,
)
def test_so_it_is_over_many_corpora(case: Case) -> None:
    assert simulated(case, MANY).wrong < 1 - case.rule.confidence


@pytest.mark.parametrize("confidence", [0.8, 0.99])
def test_other_confidences_are_kept_too(confidence: float) -> None:
    rule = replace(RANKED, confidence=confidence)
    case = Case(f"two tied, at {confidence:.0%}", light, (1, 1), 40, rule)
    outcome = simulated(case, CORPORA)
    assert 0.3 * (1 - confidence) < outcome.wrong < 1 - confidence


def test_the_order_of_a_corpus_itself_is_found_with_as_much_confidence() -> None:
    """Chunks of one finite text, without replacement; right is what all of them would say."""
    random = np.random.default_rng(9)
    wrong = 0
    for chunk_means in heavy(random, CORPORA, (1, 1), 60):
        truth = chunk_means.mean(axis=1)
        found = decided(RANKED, chunk_means[:, random.permutation(60)])
        wrong += says_wrong(found, truth.tolist())
    sys.stdout.write(f"of the corpus itself: wrong {wrong / CORPORA:.2%} of {CORPORA}\n")
    assert 0 < wrong / CORPORA < 0.05


@pytest.mark.parametrize("simulate", [light, heavy, tokens])
def test_intervals_hold_at_all_checkpoints_at_once(simulate: Simulation) -> None:
    """Whoever looks at every one of them sees a wrong one less often than 5 %."""
    chunks, corpora = 120, 5000
    values = simulate(np.random.default_rng(12), corpora, (1,), chunks)[:, 0]
    boundary = spend(checkpoints(20, chunks))
    missed = {"these": np.zeros(corpora, bool), "ordinary": np.zeros(corpora, bool)}
    for at, count in enumerate(boundary.counts):
        seen = values[:, :count]
        value, error = seen.mean(axis=1), seen.std(axis=1, ddof=1) / math.sqrt(count)
        skew = skewness(seen - value[:, None])
        level = boundary.nominal(0.05, at)
        for name, low_high in (
            ("these", bounds(value, error, skew, count, level)),
            ("ordinary", bounds(value, error, 0 * skew, count, 0.05)),
        ):
            missed[name] |= (low_high[0] > 1) | (low_high[1] < 1)
    rates = {name: float(each.mean()) for name, each in missed.items()}
    sys.stdout.write(f"{simulate.__name__}: {rates}\n")
    assert rates["these"] < 0.05
    assert rates["ordinary"] > 0.12


def test_looking_again_and_again_with_the_level_of_one_look_breaks_the_promise() -> None:
    """What the checkpoints are for: two equal candidates, the ordinary test at each of them."""
    means = light(np.random.default_rng(3), CORPORA, (1, 1), 580)
    differences = means[:, 1] - means[:, 0]
    wrong = np.zeros(CORPORA, bool)
    for count in checkpoints(20, 580):
        wrong |= stats.ttest_1samp(differences[:, :count], 0.0, axis=1).pvalue < 0.05
    assert wrong.mean() > 0.15
