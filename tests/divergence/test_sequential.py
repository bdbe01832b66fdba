"""The promise of stopping when decided, in simulation: wrong no more often than was permitted."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy import stats
from simulated_chunks import RANKED, Floats, decided, heavy, light, precise, tokens, unlike

from kldcloud.divergence.checkpoints import checkpoints, spend
from kldcloud.divergence.sequential import Decision, Rule
from kldcloud.divergence.skewness import bounds, skewness

CORPORA = 2000
MANY = 10_000
Simulation = Callable[[np.random.Generator, int, Sequence[float], int], Floats]


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
