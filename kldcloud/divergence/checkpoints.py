"""Checkpoints of a run that may stop early, and how sure each must be for all of them to hold.

Who looks at the same data again and again, and stops when they please, is wrong more often than
one look says. Here the looks are fixed beforehand, and the permitted error is spent over them
(Lan and DeMets, "Discrete sequential boundaries for clinical trials", Biometrika 70, 1983) with
their Pocock-like function: after a share t of all chunks, ``ln(1 + (e - 1) t)`` of it is gone. What
each look may spend follows from the joint distribution of means of the first n chunks, whose
correlation is ``sqrt(n / n')`` whatever the data are. `benchmarks/stopping.py` compares this with
the alternatives.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from kldcloud.divergence.records import Floats

GROWTH: Final = 1.25
"""From one checkpoint to the next. At 1.5, runs took 7 % more chunks, at 2 19 % more."""
LAST_GROWTH: Final = 1.1
"""A checkpoint that saves less than this of the whole is left out."""
SPENT: Final = 0.8
"""Of the permitted error. The rest is for what is approximate: Student's t in place of the normal
distribution, and the correction for skewness."""
_GRID_POINTS: Final = 161
_HALVINGS: Final = 60
_WIDEST: Final = 12.0
# From one in two to 1e-12: that of one of 500,000 pairs at 99.9999 %. In between, deviates are
# nearly linear in one another.
_LEVELS: Final = tuple(0.5**power for power in (*range(1, 10), *range(10, 41, 2)))
# Processors differ in the last bits of an exponential: what is printed must not.
_DECIMALS: Final = 9


def checkpoints(least: int, chunks: int) -> tuple[int, ...]:
    """Numbers of chunks after which a decision is due: these depend on nothing but the two.

    Args:
        least: of the first one.
        chunks: of the text, always the last one.
    """
    steps = (math.ceil(least * GROWTH**power) for power in itertools.count())
    early = itertools.takewhile(lambda step: step * LAST_GROWTH <= chunks, steps)
    return (*early, chunks)


@dataclass(frozen=True, slots=True, eq=False)
class Boundary:
    """What a test at each checkpoint must reach, for a grid of error rates of all of them.

    Levels are two-sided error rates. `deviates` holds ``z`` with ``level = 2 * Phi(-z)``.

    Attributes:
        counts: chunks at each checkpoint.
        deviates: ``[levels]`` float64, ascending: of all checkpoints together.
        bounds: ``[checkpoints, levels]`` float64: of each checkpoint.
    """

    counts: tuple[int, ...]
    deviates: Floats
    bounds: Floats

    def nominal(self, level: float, at: int) -> float:
        """The level of a test at one checkpoint, for so much error over all of them."""
        from scipy.special import ndtr, ndtri

        bound = np.interp(-ndtri(level / 2), self.deviates, self.bounds[at])
        return float(2 * ndtr(-bound))

    def overall(self, levels: Floats, at: int) -> Floats:
        """The error over all checkpoints that makes each level just enough at one of them.

        So p-values of one look become p-values that hold whenever one stops: sequential p-values
        (Liu and Anderson, "On adaptive extensions of group sequential trials", Journal of the
        American Statistical Association 103, 2008). Above one in two they are 1, and never
        smaller than 1e-12.

        Args:
            levels: float64 of any shape, p-values at the checkpoint.
            at: its index.
        """
        from scipy.special import ndtr, ndtri

        bounds = self.bounds[at]
        reached = -ndtri(np.asarray(levels, np.float64) / 2)
        found = 2 * ndtr(-np.interp(reached, bounds, self.deviates))
        return np.where(reached < bounds[0], 1.0, found)


@functools.lru_cache(maxsize=64)
def spend(counts: tuple[int, ...]) -> Boundary:
    """Boundary at the checkpoints, by numerical integration over the paths that have not left it.

    As Armitage, McPherson and Rowe did ("Repeated significance tests on accumulating data", Journal
    of the Royal Statistical Society A 132, 1969), with Simpson's rule. All levels at once.
    """
    from scipy.special import ndtr, ndtri

    levels = np.array(_LEVELS)
    times = np.array(counts) / counts[-1]
    spent = SPENT * np.log1p((math.e - 1) * times)
    nodes, weights = _simpson()
    bounds = np.empty((len(counts), len(levels)))
    bounds[0] = -ndtri(levels * spent[0] / 2)
    edge = bounds[0] * math.sqrt(times[0])
    # Sums of the first n chunks at time t have variance t. Their density, at each node in turn:
    places = edge[:, None] * nodes
    mass = _normal(places, math.sqrt(times[0])) * edge[:, None] * weights
    for at in range(1, len(counts)):
        step = math.sqrt(times[at] - times[at - 1])
        allowed = levels * (spent[at] - spent[at - 1])
        low, high = np.zeros_like(levels), np.full_like(levels, _WIDEST * math.sqrt(times[at]))
        for _ in range(_HALVINGS):
            edge = (low + high) / 2
            beyond = ndtr((-edge[:, None] - places) / step) + ndtr((places - edge[:, None]) / step)
            wide = np.sum(mass * beyond, axis=1) <= allowed
            low, high = np.where(wide, low, edge), np.where(wide, edge, high)
        bounds[at] = high / math.sqrt(times[at])
        ahead = high[:, None] * nodes
        density = np.empty_like(ahead)
        for level, place in enumerate(ahead):  # one at a time: a matrix each
            moves = place[:, None] - places[level]
            density[level] = np.sum(mass[level] * _normal(moves, step), axis=1)
        places, mass = ahead, density * high[:, None] * weights
    # Where rounding made a neighbour equal, interpolation still needs them in order.
    return Boundary(counts, -ndtri(levels / 2), np.maximum.accumulate(bounds.round(_DECIMALS), 1))


def _simpson() -> tuple[Floats, Floats]:
    """Nodes on [-1, 1] and their weights."""
    nodes = np.linspace(-1.0, 1.0, _GRID_POINTS)
    weights = np.full(_GRID_POINTS, 2.0)
    weights[1::2] = 4.0
    weights[[0, -1]] = 1.0
    return nodes, weights * (2 / (_GRID_POINTS - 1)) / 3


def _normal(values: Floats, deviation: float) -> Floats:
    scaled = values / deviation
    density: Floats = np.exp(-0.5 * scaled * scaled) / (deviation * math.sqrt(2 * math.pi))
    return density
