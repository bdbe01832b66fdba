"""Two candidates held against each other on every corpus: `kldcloud report RUN --pair A B`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kldcloud.errors import UserError
from kldcloud.report.differences import (
    difference_figure,
    find_pair,
    holm_words,
    interval_figure,
    p_figure,
    verdict,
)
from kldcloud.report.escaping import printable
from kldcloud.report.known_names import check_known
from kldcloud.report.summary_shape import Comparison, Pair, Summary

_NAME_SHOWN: Final = 80
_NEXT: Final = "kldcloud compare RUN works pairs out again, from what the run measured"


def render_pair(summary: Summary, one: str, other: str) -> str:
    """Write how two candidates differ, the better one first, corpus by corpus.

    Args:
        summary: the run.
        one: a candidate.
        other: another one, better or worse.

    Returns:
        A paragraph a corpus; the text ends in a newline.

    Raises:
        UserError: no such candidates, or no corpus has their pair.
    """
    known = [candidate.name for candidate in summary.candidates]
    for name in (one, other):
        check_known("candidate", name, known)
    if one == other:
        raise UserError(f"a pair is two candidates, not {_name(one)} twice", hint="name another")
    compared = {comparison.corpus: comparison for comparison in summary.comparisons}
    missing: list[str] = []
    paragraphs = []
    for corpus in summary.corpora:
        comparison = compared.get(corpus.name)
        pair = find_pair(comparison, one, other) if comparison else None
        if comparison is None or pair is None:
            missing.append(_why_not(comparison, corpus.name, one, other))
            paragraphs.append(f"{missing[-1]}\n")
        else:
            paragraphs.append("".join(f"{line}\n" for line in _lines(comparison, pair)))
    if len(missing) == len(paragraphs):
        raise UserError("; ".join(missing), hint=_NEXT)
    return "\n".join(paragraphs)


def _lines(comparison: Comparison, pair: Pair) -> Iterator[str]:
    sign = "<" if pair.distinguishable else "~"
    yield f"{_name(comparison.corpus)}: {_name(pair.better)} {sign} {_name(pair.worse)}"
    yield f"  difference    {difference_figure(pair)} nats a token of mean KLD, chunk by chunk"
    yield f"  95 % interval {interval_figure(pair)}, of this pair alone"
    adjusted = holm_words(comparison)
    alone = f"; {p_figure(pair.p)} alone" if adjusted else ""
    yield f"  p             {p_figure(pair.p_holm)} {adjusted}".rstrip() + alone
    yield f"  verdict       {verdict(pair)}"


def _why_not(comparison: Comparison | None, corpus: str, one: str, other: str) -> str:
    where = f"{_name(one)} and {_name(other)} on {_name(corpus)}"
    if comparison is None:
        return f"{where}: this summary holds no comparison"
    ranked = {rank.candidate for rank in comparison.ranks}
    for name in (one, other):
        if name not in ranked:
            return f"{where}: {_name(name)} was not measured there"
    return (
        f"{where}: not kept, for of so many candidates ({len(ranked):,})"
        " a summary has neighbours' pairs alone"
    )


def _name(name: str) -> str:
    return printable(name, limit=_NAME_SHOWN)
