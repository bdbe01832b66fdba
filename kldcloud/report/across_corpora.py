"""What several corpora say together: the macro average, and ranks that depend on the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from kldcloud.divergence.macro_average import macro_average
from kldcloud.report.differences import Quote, comparisons, rank_figure
from kldcloud.report.rounding import Measured
from kldcloud.report.summary_shape import Estimate, Rank, Result, Summary

MACRO: Final = "macro average"
"""What stands where a corpus has its name: no corpus can have this one, for it has a space."""
_MOST_WARNINGS: Final = 5
_TWO: Final = 2


@dataclass(frozen=True, slots=True)
class MacroRow:
    """One candidate over all corpora; no numbers unless it was measured on each.

    Attributes:
        candidate: its name.
        kld_mean: mean over corpora of the mean KL divergence, in nats.
        same_top: the same of the share of positions with the same top token, in per cent.
    """

    candidate: str
    kld_mean: Measured
    same_top: Measured


def macro_rows(summary: Summary) -> tuple[MacroRow, ...]:
    """A row a candidate, in the job's order; nothing where a single corpus says it all."""
    if len(summary.corpora) < _TWO:
        return ()
    found: dict[str, dict[str, Result]] = {each.name: {} for each in summary.candidates}
    for measured in summary.results:
        if measured.result is not None:
            found[measured.candidate][measured.corpus] = measured.result
    # A corpus whose text nobody knows is taken for one of its own.
    texts = {each.name: each.sha256 or each.name for each in summary.corpora}
    return tuple(
        MacroRow(name, Measured(None, None), Measured(None, None))
        if len(results) < len(summary.corpora)
        else MacroRow(
            name,
            _average({on: each.kld.mean for on, each in results.items()}, texts),
            _average({on: each.same_top for on, each in results.items()}, texts).scaled(100),
        )
        for name, results in found.items()
    )


def macro_note(summary: Summary) -> str:
    return f"over {len(summary.corpora):,} corpora, with equal weights"


def rank_warnings(summary: Summary, quote: Quote) -> tuple[str, ...]:
    """Sentences about candidates whose ranks on two corpora exclude each other.

    Only corpora with the same candidates are held against each other: where one is missing, all
    that are worse move up.

    Args:
        summary: the run.
        quote: how names are written.
    """
    groups: dict[frozenset[str], dict[str, Mapping[str, Rank]]] = {}
    for corpus, comparison in comparisons(summary).items():
        ranks = {rank.candidate: rank for rank in comparison.ranks}
        groups.setdefault(frozenset(ranks), {})[corpus] = ranks
    found = []
    for on in groups.values():
        for candidate in next(iter(on.values())):
            best = min(on, key=lambda corpus: on[corpus][candidate].high)
            worst = max(on, key=lambda corpus: on[corpus][candidate].low)
            first, last = on[best][candidate], on[worst][candidate]
            if first.high < last.low:
                found.append(
                    f"rank depends on the text: {quote(candidate)} is {rank_figure(first)}"
                    f" on {quote(best)} and {rank_figure(last)} on {quote(worst)}"
                )
    more = len(found) - _MOST_WARNINGS
    if more > 0:
        found[_MOST_WARNINGS:] = [f"rank depends on the text for {more:,} more candidates"]
    return tuple(found)


def _average(estimates: Mapping[str, Estimate], texts: Mapping[str, str]) -> Measured:
    """Over corpora, by name."""
    values = [each.value for each in estimates.values() if each.value is not None]
    if len(values) < len(estimates):
        return Measured(None, None)
    errors = [each.error for each in estimates.values()]
    average = macro_average(values, errors, [texts[on] for on in estimates])
    return Measured(average.value, average.error)
