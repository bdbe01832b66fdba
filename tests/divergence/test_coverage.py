"""95 % intervals cover 95 % of the time, on skewed values that are alike within a chunk.

Every interval that a report prints, by the code that makes it: samples of chunks are drawn from a
population of them whose means are known. Beside it, what 1.96 naive errors cover.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from correlated_records import ROWS, records
from synthetic_records import identity

from kldcloud.divergence.comparison import compare
from kldcloud.divergence.estimates import Estimate, Interval, Means
from kldcloud.divergence.moments import INDEX, Moments, chunk_moments, merge_in_order
from kldcloud.divergence.partial import Partial
from kldcloud.divergence.sequential import Rule, decide
from kldcloud.divergence.summary import Reduction, ResultSummary, _perplexity, _rms

POPULATION = 6000
CORRELATED = {"kld", "reverse_kld", "entropy_base", "candidate", "base"}
"""Statistics whose naive errors ignore most of the variance; the others' ignore less."""


@dataclass(frozen=True)
class Population:
    """Chunks of two candidates on one text."""

    moments: tuple[Moments, ...]
    others: np.ndarray

    def draw(self, chosen: np.ndarray, level: float | None = None) -> Means:
        some = [self.moments[at] for at in chosen]
        sizes, means = [each.count for each in some], [each.mean for each in some]
        return Means(merge_in_order(some), sizes, means, level=level)

    def truth(self) -> dict[str, float]:
        whole = estimates(self.draw(np.arange(POPULATION)))
        return {name: each.value for name, each in whole.items()}

    def klds(self) -> np.ndarray:
        """float64 ``[candidates, chunks]``."""
        return np.stack([[each.mean[INDEX["kld"]] for each in self.moments], self.others])


@functools.cache
def population(tail: float = 1.0) -> Population:
    one = records(POPULATION, seed=7, tail=tail)
    other = records(POPULATION, seed=7, candidate=1, tail=tail, worse=1.1)
    return Population(chunk_moments(one), other.kld.reshape(POPULATION, ROWS).mean(axis=1))


def estimates(means: Means) -> dict[str, Estimate]:
    """As `Reduction.result` makes them; a test below holds the two together."""
    perplexity = _perplexity(means)
    return {
        "kld": means.mean("kld", low=0.0),
        "reverse_kld": means.mean("reverse_kld", low=0.0),
        "entropy_base": means.mean("entropy_base", low=0.0),
        "probability_change": means.mean("probability_change", low=-1.0, high=1.0),
        "rms": _rms(means),
        "same_top": means.share("same_top"),
        "candidate": perplexity.candidate,
        "base": perplexity.base,
        "ratio": perplexity.ratio,
        "log_ratio": perplexity.log_ratio,
        "difference": perplexity.difference,
    }


def printed(summary: ResultSummary) -> dict[str, Estimate]:
    perplexity = summary.perplexity
    return {
        "kld": summary.kld_mean,
        "reverse_kld": summary.reverse_kld_mean,
        "entropy_base": summary.entropy_base_mean,
        "probability_change": summary.probability_change_mean,
        "rms": summary.probability_change_rms,
        "same_top": summary.same_top,
        "candidate": perplexity.candidate,
        "base": perplexity.base,
        "ratio": perplexity.ratio,
        "log_ratio": perplexity.log_ratio,
        "difference": perplexity.difference,
    }


def covers(interval: Interval | None, truth: float) -> bool:
    assert interval is not None
    return interval.low <= truth <= interval.high


@dataclass(frozen=True)
class Coverage:
    robust: Mapping[str, float]
    naive: Mapping[str, float]


def coverage(chunks: int, rounds: int, tail: float = 1.0, level: float | None = None) -> Coverage:
    """Shares of samples whose intervals cover the population's value.

    Args:
        chunks: in a sample.
        rounds: samples.
        tail: of the population's divergences.
        level: of intervals that allow for skewness; None for the ordinary ones.
    """
    whole = population(tail)
    truth, klds = whole.truth(), whole.klds()
    apart = float(np.diff(klds.mean(axis=1))[0])
    assert apart > 0
    random = np.random.default_rng((chunks, rounds))
    robust, naive = dict.fromkeys([*truth, "paired"], 0), dict.fromkeys(truth, 0)
    for _ in range(rounds):
        chosen = random.integers(0, POPULATION, chunks)
        for name, each in estimates(whole.draw(chosen, level)).items():
            robust[name] += covers(each.interval95, truth[name])
            naive[name] += abs(each.value - truth[name]) <= 1.96 * each.error_naive
        (pair,) = compare(klds[:, chosen], [ROWS] * chunks).pairs
        robust["paired"] += covers(pair.interval95, apart if pair.better == 0 else -apart)
    sys.stdout.write(f"\n{chunks} chunks of {ROWS} positions, {rounds} samples, tail {tail}\n")
    for name, count in robust.items():
        beside = f"{naive[name] / rounds:9.1%}" if name in naive else ""
        sys.stdout.write(f"  {name:20s}{count / rounds:9.1%}{beside}\n")
    return Coverage(
        {name: count / rounds for name, count in robust.items()},
        {name: count / rounds for name, count in naive.items()},
    )


def test_samples_go_through_the_code_that_makes_the_summary() -> None:
    source = records(40, seed=3)
    reduction = Reduction()
    reduction.add(Partial.from_records(source, identity=identity(0, 40)))
    moments = chunk_moments(source)
    means = Means(
        merge_in_order(moments), [each.count for each in moments], [each.mean for each in moments]
    )
    assert printed(reduction.result()) == estimates(means)


def test_a_stopped_runs_summary_has_the_interval_that_stopped_it() -> None:
    source = records(60, seed=4)
    reduction = Reduction()
    reduction.add(Partial.from_records(source, identity=identity(0, 60)))
    klds = source.kld.reshape(60, ROWS).mean(axis=1)
    decision = decide(Rule("precise", 0.001, 0.95, 20), klds[None, :], [ROWS] * 60, 60)
    assert decision is not None
    (mean,) = decision.means
    found = reduction.result(level=decision.level)
    assert found.kld_mean.interval95 is not None
    assert mean.interval is not None
    assert found.kld_mean.interval95.low == pytest.approx(mean.interval.low, rel=1e-12)
    assert found.kld_mean.interval95.high == pytest.approx(mean.interval.high, rel=1e-12)
    plain = printed(reduction.result())
    for name, each in printed(found).items():
        ordinary = plain[name]
        assert (each.value, each.error) == (ordinary.value, ordinary.error)
        assert each.interval95 is not None
        assert ordinary.interval95 is not None
        assert each.interval95.low <= ordinary.interval95.low
        assert each.interval95.high >= ordinary.interval95.high


def test_every_interval_covers_as_it_says_and_naive_ones_do_not() -> None:
    found = coverage(chunks=150, rounds=4000)
    off = {name: share for name, share in found.robust.items() if abs(share - 0.95) > 0.01}
    assert not off
    assert all(found.naive[name] < 0.85 for name in CORRELATED)


@pytest.mark.parametrize("rate", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("chunks", [16, 100])
def test_shares_of_rare_disagreements_are_covered(rate: float, chunks: int) -> None:
    rounds, rows = 1500, 255
    random = np.random.default_rng(chunks)
    rates = np.minimum(rate * random.lognormal(-0.045, 0.3, (rounds, chunks)), 1.0)
    agreed = rows - random.binomial(rows, rates)
    inside = 0
    for each in agreed:
        shares = each / rows
        scatter = rows * np.sum((shares - shares.mean()) ** 2)  # as if all of a chunk were alike
        total = Moments(chunks * rows, np.array([shares.mean()]), np.array([[scatter]]))
        means = Means(total, [rows] * chunks, list(shares[:, None]), {"same_top": 0})
        inside += covers(means.share("same_top").interval95, 1 - rate)
    sys.stdout.write(f"\n{chunks} chunks, {rate:g} disagree: {inside / rounds:.1%}\n")
    assert inside / rounds > 0.93


@pytest.mark.parametrize(
    "rule",
    [Rule("precise", 0.3, 0.95, 20), Rule("ranked", None, 0.95, 20)],
    ids=["precise", "ranked"],
)
def test_where_a_run_may_stop_early_every_interval_covers_no_less(rule: Rule) -> None:
    whole, chunks, rounds = population(), 80, 800
    truth, klds = whole.truth(), whole.klds()
    random = np.random.default_rng(5)
    missed, ordinary, used = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0), 0
    for _ in range(rounds):
        chosen = random.integers(0, POPULATION, chunks)
        decision = decide(rule, klds[:, chosen], [ROWS] * chunks, chunks)
        assert decision is not None
        some = chosen[: decision.chunks]
        used += decision.chunks
        for name, each in estimates(whole.draw(some, decision.level)).items():
            missed[name] += not covers(each.interval95, truth[name])
        for name, each in estimates(whole.draw(some)).items():
            ordinary[name] += not covers(each.interval95, truth[name])
    sys.stdout.write(f"\n{rule.when}: {used / rounds / chunks:.0%} of {chunks} chunks used\n")
    for name, count in missed.items():
        sys.stdout.write(f"  {name:20s}{1 - count / rounds:9.1%}")
        sys.stdout.write(f"{1 - ordinary[name] / rounds:9.1%} of ordinary ones\n")
    assert used < 0.97 * rounds * chunks
    assert max(missed.values()) < 0.05 * rounds


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("chunks", [100, 200, 400])
def test_so_it_is_from_a_hundred_chunks_on(chunks: int) -> None:
    found = coverage(chunks, rounds=10_000)
    off = {name: share for name, share in found.robust.items() if abs(share - 0.95) > 0.01}
    assert not off
    assert all(found.naive[name] < 0.85 for name in CORRELATED)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_heavier_tails_want_an_allowance_for_skewness() -> None:
    """Far heavier than seen on any model: a chunk's mean divergence has a skewness of 4.5."""
    ordinary = coverage(100, 5000, tail=1.5).robust
    careful = coverage(100, 5000, tail=1.5, level=0.05).robust
    for name in ("kld", "reverse_kld", "rms"):
        assert ordinary[name] < 0.94
        assert 0.94 < careful[name] < 0.985
    assert all(careful[name] >= ordinary[name] for name in ordinary)
