"""Which candidates the data tell apart: neighbours in rank, any pair, and sentences about them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Final

from kldcloud.report.rounding import MISSING, Measured, kld_figure, kld_with_error
from kldcloud.report.summary_shape import Comparison, Pair, Rank, Summary

Quote = Callable[[str], str]
"""How a rendering writes a name that it did not choose."""
_MOST_NAMED: Final = 3
_TWO: Final = 2


def comparisons(summary: Summary) -> dict[str, Comparison]:
    """By corpus, those that compare anything: a candidate alone has no rank worth a word."""
    return {each.corpus: each for each in summary.comparisons if len(each.ranks) >= _TWO}


def neighbours(comparison: Comparison) -> tuple[Pair, ...]:
    """Each candidate against the next one, from the smallest mean KL divergence to the largest."""
    kept = {frozenset((pair.better, pair.worse)): pair for pair in comparison.pairs}
    order = [rank.candidate for rank in comparison.ranks]
    names = (frozenset(each) for each in pairwise(order))
    return tuple(kept[each] for each in names if each in kept)


def find_pair(comparison: Comparison, one: str, other: str) -> Pair | None:
    """Two candidates' pair in whichever order they are named; None if it was not kept."""
    wanted = {one, other}
    found = (pair for pair in comparison.pairs if {pair.better, pair.worse} == wanted)
    return next(found, None)


def rank_figure(rank: Rank | None) -> str:
    """A rank, or the range of ranks that the data allow."""
    if rank is None:
        return MISSING
    return f"{rank.low:,}" if rank.low == rank.high else f"{rank.low:,}-{rank.high:,}"


def difference_figure(pair: Pair) -> str:
    """The difference of means and its standard error, in nats."""
    return kld_with_error(Measured(pair.difference, pair.error))


def interval_figure(pair: Pair) -> str:
    low, high = pair.interval95 or (None, None)
    if low is None or high is None:
        return MISSING
    return f"{kld_figure(low)} to {kld_figure(high)}"


def p_figure(p: float | None) -> str:
    """A p-value to two digits; tiny ones as powers of ten."""
    return MISSING if p is None else f"{p:.2g}"


def verdict(pair: Pair) -> str:
    return "distinguishable" if pair.distinguishable else "not distinguishable"


def undecided_note(comparison: Comparison, quote: Quote) -> str | None:
    """One sentence that names the neighbours that the data do not tell apart; None if all are.

    Args:
        comparison: of one corpus.
        quote: how names are written.
    """
    open_pairs = [pair for pair in neighbours(comparison) if not pair.distinguishable]
    if not open_pairs:
        return None
    named = [
        f"{quote(pair.better)} and {quote(pair.worse)}"
        f" (difference {difference_figure(pair)}, {_p_words(pair, comparison, whole=at == 0)})"
        for at, pair in enumerate(open_pairs[:_MOST_NAMED])
    ]
    more = len(open_pairs) - len(named)
    rest = f"; and {more:,} more pair{'' if more == 1 else 's'} of neighbours" if more else ""
    return f"Not distinguishable on {quote(comparison.corpus)}: {'; '.join(named)}{rest}."


def holm_words(comparison: Comparison) -> str:
    """What the p-values of a comparison are adjusted for; empty for a single pair."""
    tested = comparison.pairs_tested
    return f"after Holm over {tested:,} pairs" if tested > 1 else ""


def _p_words(pair: Pair, comparison: Comparison, *, whole: bool) -> str:
    if pair.p_holm is None:
        return "no p from so few chunks"
    adjusted = holm_words(comparison) if whole else ""
    return f"p {p_figure(pair.p_holm)} {adjusted}".rstrip()
