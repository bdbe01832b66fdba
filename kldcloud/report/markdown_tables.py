"""Tables in GitHub-flavoured Markdown, for report.md and for model cards alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from kldcloud.report.across_corpora import MacroRow
from kldcloud.report.differences import (
    difference_figure,
    interval_figure,
    neighbours,
    p_figure,
    verdict,
)
from kldcloud.report.escaping import markdown_code, markdown_code_cell
from kldcloud.report.rounding import kld_with_error
from kldcloud.report.summary_shape import Comparison
from kldcloud.report.table import CorpusTable, outcome, percent_figure, shown_columns

NAME_SHOWN: Final = 120


def corpus_lines(table: CorpusTable) -> Iterator[str]:
    """All candidates on one corpus, with every published column."""
    columns = shown_columns(table.rows)
    yield _line(["candidate", *(column.heading for column in columns)])
    yield _line(["---", *("---:" for _ in columns)])
    for row in table.rows:
        instead = outcome(row)
        cells = [
            instead if instead and column.key == "kld" else column.cell(row) for column in columns
        ]
        yield _line([_cell(row.candidate), *cells])


def macro_lines(rows: Sequence[MacroRow]) -> Iterator[str]:
    """All candidates over all corpora."""
    yield _line(["candidate", "mean KLD", "same top %"])
    yield _line(["---", "---:", "---:"])
    for row in rows:
        figures = (kld_with_error(row.kld_mean), percent_figure(row.same_top))
        yield _line([_cell(row.candidate), *figures])


def pair_lines(comparison: Comparison) -> Iterator[str]:
    """Neighbours in rank and whether the data tell them apart."""
    yield _line(["better", "worse", "difference", "95 % interval", "p", "verdict"])
    yield _line(["---", "---", "---:", "---:", "---:", "---"])
    for pair in neighbours(comparison):
        figures = (difference_figure(pair), interval_figure(pair), p_figure(pair.p_holm))
        yield _line([_cell(pair.better), _cell(pair.worse), *figures, verdict(pair)])


def look_lines(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Figures alone, as those of a training run."""
    yield _line(headings)
    yield _line(["---:"] * len(headings))
    yield from map(_line, rows)


def code_name(name: str) -> str:
    """A name from outside in running text."""
    return markdown_code(name, limit=NAME_SHOWN)


def _cell(name: str) -> str:
    return markdown_code_cell(name, limit=NAME_SHOWN)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
