"""A post for Reddit: Markdown that its old and its new renderer show alike, short, without HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from kldcloud.report.across_corpora import MACRO, macro_note, macro_rows
from kldcloud.report.corpus_notes import corpus_notes
from kldcloud.report.differences import comparisons, undecided_note
from kldcloud.report.escaping import reddit_text
from kldcloud.report.reading import corpus_note, how_to_read, progress_note, run_warnings
from kldcloud.report.rounding import kld_with_error
from kldcloud.report.summary_shape import Summary
from kldcloud.report.table import (
    CorpusTable,
    corpus_tables,
    outcome,
    percent_figure,
    shown_columns,
)

_SHOWN: Final = frozenset(
    {"rank", "size", "bits", "kld", "llama_kld", "p99_9", "same_top", "ppl_ratio"}
)
_NAME_SHOWN: Final = 64


def render_reddit(summary: Summary) -> str:
    """Write a run's tables as a post.

    Returns:
        A title, one table a corpus and one over several, what the data do not tell apart, and how
        to read it all; ends in one newline.
    """
    return "\n\n".join(_paragraphs(summary)) + "\n"


def _paragraphs(summary: Summary) -> Iterator[str]:
    engine = [summary.engine.get(key, "") for key in ("name", "version", "backend")]
    made_with = " ".join(_name(fact) for fact in engine if fact)
    yield f"**{_name(summary.name)}: KL divergence from {_name(summary.base.name)}**"
    if note := progress_note(summary):
        yield note
    compared = comparisons(summary)
    for table in corpus_tables(summary):
        yield f"On {_name(table.corpus.name)}, {corpus_note(table)}:"
        yield _corpus(table)
        yield from corpus_notes(summary, table.corpus.name, _name)
        comparison = compared.get(table.corpus.name)
        if comparison and (open_pairs := undecided_note(comparison, _name)):
            yield open_pairs
    if rows := macro_rows(summary):
        yield f"{MACRO.capitalize()} {macro_note(summary)}:"
        figures = [
            [row.candidate, kld_with_error(row.kld_mean), percent_figure(row.same_top)]
            for row in rows
        ]
        yield _table(["mean KLD", "same top %"], figures)
    yield from run_warnings(summary, _name)
    yield how_to_read(summary, naive_error=False)
    yield f"Measured with kldcloud {_name(summary.kldcloud)}, {made_with or 'no engine named'}."


def _corpus(table: CorpusTable) -> str:
    columns = [
        column for column in shown_columns(table.rows, naive_error=False) if column.key in _SHOWN
    ]
    rows = [
        [
            row.candidate,
            *((column.key == "kld" and outcome(row)) or column.cell(row) for column in columns),
        ]
        for row in table.rows
    ]
    return _table([column.heading for column in columns], rows)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first cells are names."""
    lines = [["quant", *headings], [":--", *("--:" for _ in headings)]]
    lines += [[_name(name), *figures] for name, *figures in rows]
    return "\n".join(f"|{'|'.join(cells)}|" for cells in lines)


def _name(name: str) -> str:
    return reddit_text(name, limit=_NAME_SHOWN)
