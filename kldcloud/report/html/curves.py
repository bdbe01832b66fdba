"""Which candidates charts of curves show at first, and what they call them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kldcloud.report.html.chart_style import COLOURS
from kldcloud.report.html.shown_names import shown_names
from kldcloud.report.summary_shape import Candidate

MOST_AT_ONCE: Final = len(COLOURS)
"""Curves in one chart: so many keep a colour and a shape each. Of more, a reader chooses."""

_NAME_SHOWN: Final = 32


@dataclass(frozen=True, slots=True)
class Curve:
    """A candidate: its name as the summary has it, and what charts call it."""

    candidate: str
    shown: str


def curves_of(candidates: Sequence[Candidate]) -> tuple[Curve, ...]:
    """One for each candidate of a run, in the order of the job."""
    names = [candidate.name for candidate in candidates]
    return tuple(map(Curve, names, shown_names(names, limit=_NAME_SHOWN)))


def shown_first(names: Sequence[str], order: Sequence[str]) -> tuple[str, ...]:
    """Which candidates a chart shows at first: all, or some from the best to the worst.

    Args:
        names: those that have a profile.
        order: candidates as they are ranked; what is not in it comes last.
    """
    if len(names) <= MOST_AT_ONCE:
        return tuple(names)
    place = {name: at for at, name in enumerate(order)}
    ranked = sorted(names, key=lambda name: place.get(name, math.inf))
    last = len(ranked) - 1
    picked = {ranked[round(at * last / (MOST_AT_ONCE - 1))] for at in range(MOST_AT_ONCE)}
    return tuple(name for name in names if name in picked)
