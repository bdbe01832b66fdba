"""Which candidates the data tell apart, in sentences and as a ranking."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kldcloud.report.html.markup import Html, caption, element, foreign, joined, text
from kldcloud.report.html.size_points import size_plot
from kldcloud.report.rounding import (
    MISSING,
    Measured,
    kld_with_error,
    rounded_to_error,
    size_figure,
)
from kldcloud.report.summary_shape import Comparison, Corpus, Estimate, Pair, Summary
from kldcloud.report.table import GIB

_NAME_SHOWN: Final = 60
_CAUSE_SHOWN: Final = 400
_MOST_PAIRS: Final = 8
_LEAST_P: Final = 1e-4
_DECIMALS: Final = 6


def verdict_list(summary: Summary, corpus: Corpus) -> Html:
    """What a reader should take away of one corpus, as a list of sentences."""
    comparison = next((each for each in summary.comparisons if each.corpus == corpus.name), None)
    sentences = [
        *_lead(summary, corpus, comparison),
        *(_verdicts(comparison) if comparison else _without(summary, corpus)),
        *_frontier(summary, corpus),
        *_failures(summary, corpus),
    ]
    return element("ul", *(element("li", each) for each in sentences), class_="verdicts")


def ranking(summary: Summary, comparison: Comparison) -> Html:
    """A table of all candidates from the best, each compared with the next one."""
    means = _means(summary, comparison.corpus)
    pairs = {(pair.better, pair.worse): pair for pair in comparison.pairs}
    following = [rank.candidate for rank in comparison.ranks[1:]]
    rows = []
    for at, rank in enumerate(comparison.ranks):
        pair = pairs.get((rank.candidate, following[at])) if at < len(following) else None
        rows.append(
            element(
                "tr",
                element("td", _range(rank.low, rank.high)),
                element("th", foreign(rank.candidate, limit=_NAME_SHOWN), scope="row"),
                element("td", kld_with_error(_measured(means.get(rank.candidate)))),
                *_beside_the_next(pair, last=at == len(following)),
            )
        )
    headings = ("rank", "candidate", "mean KLD", "less than the next by", "p", "verdict")
    return element(
        "table",
        caption(
            "Ranks that each candidate can have, all of them with 95\u00a0% confidence together,"
            " and its difference from the next one: on the same tokens, with one standard error,"
            " cluster-robust by chunk, and p after Holm's adjustment for"
            f" {_counted(comparison.pairs_tested, 'pair')}.",
        ),
        element("thead", element("tr", *(element("th", each, scope="col") for each in headings))),
        element("tbody", *rows),
        class_="ranking",
    )


def p_figure(p: float | None) -> str:
    """A p-value as people quote it."""
    if p is None:
        return MISSING
    return f"< {_LEAST_P:.4f}" if p < _LEAST_P else f"{p:.2g}" if p < 1 else "1"


def _lead(summary: Summary, corpus: Corpus, comparison: Comparison | None) -> Iterator[Html]:
    means = _means(summary, corpus.name)
    known = {name: mean for name, mean in means.items() if mean.value is not None}
    if not known:
        return
    best = min(known, key=lambda name: known[name].value or 0.0)
    figure = f"mean KLD {kld_with_error(_measured(known[best]))} nats a token"
    size = next(each.bytes for each in summary.candidates if each.name == best)
    if size is not None:
        figure += f", {size_figure(size / GIB)}"
    others = _may_be_first(comparison, best)
    yield joined(
        [
            element("strong", foreign(best, limit=_NAME_SHOWN)),
            f" is closest to the base: {figure}." if len(means) > 1 else f": {figure}.",
            f" {_counted(len(others), 'other')} may be as close." if others else None,
        ]
    )


def _may_be_first(comparison: Comparison | None, best: str) -> list[str]:
    ranks = comparison.ranks if comparison else ()
    return [rank.candidate for rank in ranks if rank.low == 1 and rank.candidate != best]


def _verdicts(comparison: Comparison) -> Iterator[Html]:
    pairs = comparison.pairs
    if not pairs:
        yield text("One candidate alone was measured: there is nothing to compare it with.")
        return
    undecided = [pair for pair in pairs if not pair.distinguishable]
    if len(pairs) < comparison.pairs_tested:
        what = f"{_counted(len(pairs), 'pair')} of neighbours in the ranking"
    else:
        what = _counted(len(pairs), "pair")
    tested = "at 5\u00a0%"
    if comparison.pairs_tested > 1:
        tested += f", adjusted for all {comparison.pairs_tested:,} by Holm's method"
    apart = len(pairs) - len(undecided)
    if not undecided:
        who = f"All of {what}" if apart > 1 else "The two"
        yield text(f"{who} are distinguishable ({tested}).")
    elif len(pairs) > 1:
        count = f"{apart:,}" if apart else "None"
        yield text(f"{count} of {what} {'is' if apart == 1 else 'are'} distinguishable ({tested}).")
    for pair in undecided[:_MOST_PAIRS]:
        yield _not_distinguishable(pair, comparison.corpus)
    if len(undecided) > _MOST_PAIRS:
        yield text(f"{len(undecided) - _MOST_PAIRS:,} more pairs are not distinguishable.")


def _not_distinguishable(pair: Pair, corpus: str) -> Html:
    difference = rounded_to_error(
        Measured(pair.difference, pair.error), most=_DECIMALS, without_error=_DECIMALS
    )
    why = (
        f"p\u00a0{p_figure(pair.p_holm)} after Holm" if pair.p_holm is not None else "of one chunk"
    )
    return joined(
        [
            element("strong", foreign(pair.better, limit=_NAME_SHOWN)),
            " and ",
            element("strong", foreign(pair.worse, limit=_NAME_SHOWN)),
            " are not distinguishable on ",
            foreign(corpus, limit=_NAME_SHOWN),
            f" (difference {difference} nats, {why}).",
        ]
    )


def _without(summary: Summary, corpus: Corpus) -> Iterator[Html]:
    if _means(summary, corpus.name):
        yield text("This summary has no comparisons: kldcloud made none when it was written.")


def _frontier(summary: Summary, corpus: Corpus) -> Iterator[Html]:
    plot = size_plot(summary, corpus.name, "mean")
    beaten = [point.name for point in plot.points if not point.on_frontier]
    if not beaten:
        return
    if len(beaten) > _MOST_PAIRS:
        yield text(
            f"{len(beaten):,} of {len(plot.points):,} candidates are off the Pareto frontier:"
            " a file no larger has a mean no higher."
        )
        return
    names = joined((foreign(name, limit=_NAME_SHOWN) for name in beaten), ", ")
    yield joined(
        ["Off the Pareto frontier, where a file no larger has a mean no higher: ", names, "."]
    )


def _failures(summary: Summary, corpus: Corpus) -> Iterator[Html]:
    for measured in summary.results:
        if measured.corpus == corpus.name and measured.status == "failed":
            cause = measured.error or "no cause recorded"
            yield joined(
                [
                    element("strong", foreign(measured.candidate, limit=_NAME_SHOWN)),
                    " failed: ",
                    foreign(cause, limit=_CAUSE_SHOWN),
                ]
            )


def _beside_the_next(pair: Pair | None, *, last: bool) -> Iterator[Html]:
    if pair is None:
        yield element("td", "" if last else "not kept", colspan="3")
        return
    difference = Measured(pair.difference, pair.error)
    yield element("td", rounded_to_error(difference, most=_DECIMALS, without_error=_DECIMALS))
    yield element("td", p_figure(pair.p_holm))
    if pair.distinguishable:
        yield element("td", "distinguishable")
    else:
        yield element("td", "not distinguishable", class_="undecided")


def _means(summary: Summary, corpus: str) -> dict[str, Estimate]:
    return {
        each.candidate: each.result.kld.mean
        for each in summary.results
        if each.corpus == corpus and each.result
    }


def _measured(estimate: Estimate | None) -> Measured:
    return Measured(estimate.value, estimate.error) if estimate else Measured(None, None)


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
