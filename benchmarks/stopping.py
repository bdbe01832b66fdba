"""Rules to stop early, beside one another: how often each is wrong, and what it saves.

    python benchmarks/stopping.py [--corpora 4000] [--chunks 580] [--least 20]

Chunks are simulated by `tests/divergence/simulated_chunks.py`, so true means are known. *Wrong* is
a tied pair that a rule ranks, or an interval that misses its mean, at any of the checkpoints up to
the end: 5 % are allowed. *Used* is the share of chunks at which a pair that is apart is ranked, or
at which a mean is known to the half-width that the ordinary interval would have at a quarter of the
chunks. All rules look at the same checkpoints. A rule that is wrong too often has saved nothing.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import special

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "divergence"))

from simulated_chunks import heavy, light, tokens, unlike

from kldcloud.divergence.checkpoints import SPENT, checkpoints, spend
from kldcloud.divergence.skewness import bounds, skewness

Floats = npt.NDArray[np.float64]
LEVEL = 0.05
TUNED_FOR = 100
"""Chunks at which the asymptotic confidence sequence is as narrow as it can be."""


@dataclass(frozen=True, slots=True)
class Looks:
    """Means of the first chunks at each checkpoint; float64 ``[checkpoints, corpora]``."""

    counts: tuple[int, ...]
    value: Floats
    error: Floats
    skew: Floats

    @classmethod
    def at(cls, counts: tuple[int, ...], values: Floats) -> Looks:
        seen = [values[:, :count] for count in counts]
        value = np.stack([each.mean(axis=1) for each in seen])
        error = np.stack([each.std(axis=1, ddof=1) / math.sqrt(each.shape[1]) for each in seen])
        skew = np.stack([skewness(each - each.mean(axis=1, keepdims=True)) for each in seen])
        return cls(counts, value, error, skew)


Rule = Callable[[Looks], tuple[Floats, Floats]]
"""Lower and upper ends of intervals at each checkpoint."""


def each_time(looks: Looks) -> tuple[Floats, Floats]:
    """Student's 95 % interval at every checkpoint, as if it were the only one."""
    return _student(looks, [LEVEL] * len(looks.counts))


def spent_evenly(looks: Looks) -> tuple[Floats, Floats]:
    """Pocock-like spending with Student's t: ours without the allowance for skewness."""
    boundary = spend(looks.counts)
    return _student(looks, [boundary.nominal(LEVEL, at) for at in range(len(looks.counts))])


def spent_late(looks: Looks) -> tuple[Floats, Floats]:
    """Lan and DeMets's O'Brien-Fleming-like function, from paths drawn at random."""
    return _student(looks, _late_levels(looks.counts))


def asymptotic(looks: Looks) -> tuple[Floats, Floats]:
    """The confidence sequence of Waudby-Smith and others (2024), their equation for two sides.

    ``sqrt((n rho^2 + 1) / (n rho^2) log((n rho^2 + 1) / alpha^2))`` standard errors, with the rho
    that makes it narrowest at one n.
    """
    extra = -2 * math.log(LEVEL)
    narrowest = (extra + math.log(extra + 1)) / TUNED_FOR
    n = np.array(looks.counts)[:, None] * narrowest
    half = np.sqrt((n + 1) / n * np.log((n + 1) / LEVEL**2)) * looks.error
    return looks.value - half, looks.value + half


def ours(looks: Looks) -> tuple[Floats, Floats]:
    """What `kldcloud.divergence.sequential` does."""
    boundary = spend(looks.counts)
    ends = [
        bounds(looks.value[at], looks.error[at], looks.skew[at], count, boundary.nominal(LEVEL, at))
        for at, count in enumerate(looks.counts)
    ]
    return np.stack([low for low, _ in ends]), np.stack([high for _, high in ends])


PEER = "asymptotic CS"
OURS = "ours"
RULES: dict[str, Rule] = {
    "t, each time": each_time,
    PEER: asymptotic,
    "O'Brien-Fleming, t": spent_late,
    "Pocock, t": spent_evenly,
    OURS: ours,
}
Simulation = Callable[[np.random.Generator, int, tuple[float, float], int], Floats]
CHUNKS: tuple[tuple[str, Simulation, float], ...] = (
    ("light tails", light, 1.05),
    ("heavy tails", heavy, 1.25),
    ("correlated tokens", tokens, 1.15),
    ("unlike tails", unlike, 1.3),
)
"""Kinds, and how far apart a pair is that should be ranked."""


def _student(looks: Looks, levels: list[float]) -> tuple[Floats, Floats]:
    counts = np.array(looks.counts)[:, None]
    half = special.stdtrit(counts - 1.0, 1 - np.array(levels)[:, None] / 2) * looks.error
    return looks.value - half, looks.value + half


def _late_levels(counts: tuple[int, ...]) -> list[float]:
    random = np.random.default_rng(1)
    times = np.array(counts) / counts[-1]
    steps = np.sqrt(np.diff(times, prepend=0))
    paths = np.abs(np.cumsum(random.normal(size=(400_000, len(times))) * steps, axis=1))
    paths /= np.sqrt(times)
    spent = SPENT * 2 * special.ndtr(special.ndtri(LEVEL / 2) / np.sqrt(times))
    levels, inside = [], np.ones(len(paths), bool)
    for at in range(len(times)):
        gone = round(spent[at] * len(paths)) - int((~inside).sum())
        if gone < 1:
            levels.append(max(float(spent[at]), 1e-12))
            continue
        bound = np.sort(paths[inside, at])[-gone]
        inside &= paths[:, at] < bound
        levels.append(float(2 * special.ndtr(-bound)))
    return levels


def _used(settled: npt.NDArray[np.bool_], counts: tuple[int, ...]) -> float:
    first = np.where(settled.any(axis=0), settled.argmax(axis=0), len(counts) - 1)
    return float(np.array(counts)[first].mean() / counts[-1])


@dataclass(frozen=True, slots=True)
class Row:
    """What one rule comes to on one kind of chunk, as shares."""

    ranked: float
    pair: float
    missed: float
    mean: float

    @property
    def broken(self) -> bool:
        """Whether it is wrong more often than it may."""
        return max(self.ranked, self.missed) > LEVEL

    def to_text(self) -> str:
        """The row of the table, less its names."""
        shares = f"{self.ranked:11.1%}{self.pair:12.1%}{self.missed:14.1%}{self.mean:12.1%}"
        return shares + ("  BROKEN" if self.broken else "")


def rows(simulate: Simulation, apart: float, corpora: int, counts: tuple[int, ...]) -> list[Row]:
    """Try every rule on the same corpora; pairs that are apart differ by this factor."""
    random = np.random.default_rng(7)
    batches = [simulate(random, 100, (1, 1), counts[-1]) for _ in range(corpora // 100)]
    one, other = np.concatenate(batches).swapaxes(0, 1)
    tie, pair = Looks.at(counts, other - one), Looks.at(counts, apart * other - one)
    mean = Looks.at(counts, one)
    wanted = 1.96 * float(one.std()) / math.sqrt(counts[-1] / 4)
    found = []
    for rule in RULES.values():
        low, high = rule(tie)
        ranked = float(((low > 0) | (high < 0)).any(axis=0).mean())
        low, high = rule(mean)
        missed = float(((low > 1) | (high < 1)).any(axis=0).mean())
        arm = np.maximum(high - mean.value, mean.value - low) / mean.value
        found.append(
            Row(ranked, _used(rule(pair)[0] > 0, counts), missed, _used(arm <= wanted, counts))
        )
    return found


def main() -> None:
    """Print a line for each kind of chunk and rule."""
    parser = argparse.ArgumentParser(description="Rules to stop early, beside one another.")
    parser.add_argument("--corpora", type=int, default=4000)
    parser.add_argument("--chunks", type=int, default=580)
    parser.add_argument("--least", type=int, default=20)
    said = parser.parse_args()
    counts = checkpoints(said.least, said.chunks)
    print(f"{said.corpora} corpora of {said.chunks} chunks; {len(counts)} checkpoints")
    print(f"{'':38s} tie ranked  pair, used   mean missed  mean, used")
    ratios = []
    for name, simulate, apart in CHUNKS:
        found = rows(simulate, apart, said.corpora, counts)
        for called, row in zip(RULES, found, strict=True):
            print(f"{name:18s}{called:20s}{row.to_text()}")
        peer, own = found[list(RULES).index(PEER)], found[list(RULES).index(OURS)]
        ratios.append(f"{name} {own.pair / peer.pair:.2f}, {own.mean / peer.mean:.2f}")
    print(f"chunks used, {OURS} / {PEER} (pair, mean): {'; '.join(ratios)}")


if __name__ == "__main__":
    main()
