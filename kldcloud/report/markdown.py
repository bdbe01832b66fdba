"""report.md: the tables as people publish them on GitHub and on Hugging Face cards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kldcloud.report.across_corpora import MACRO, macro_note, macro_rows, rank_warnings
from kldcloud.report.differences import (
    comparisons,
    difference_figure,
    holm_words,
    interval_figure,
    neighbours,
    p_figure,
    verdict,
)
from kldcloud.report.escaping import markdown_code, markdown_code_cell
from kldcloud.report.reading import corpus_note, how_to_read, progress_note
from kldcloud.report.rounding import MISSING, bits_figure, gib_figure, kld_with_error
from kldcloud.report.summary_shape import Base, Candidate, Comparison, Summary
from kldcloud.report.table import (
    GIB,
    CorpusTable,
    TableRow,
    corpus_tables,
    outcome,
    percent_figure,
    shown_columns,
)

_DIGEST_SHOWN: Final = 12
_NAME_SHOWN: Final = 120
_CAUSE_SHOWN: Final = 400


def render_markdown(summary: Summary) -> str:
    """Write a run's report as GitHub-flavoured Markdown.

    Returns:
        Title, one table a corpus and one over several, how to read them, which neighbours the data
        tell apart, failures with their cause, and what was measured; ends in one newline.
    """
    return "\n".join(_lines(summary)) + "\n"


def _lines(summary: Summary) -> Iterator[str]:
    tables = corpus_tables(summary)
    yield f"# KL divergence: {_name(summary.name)}"
    yield ""
    if note := progress_note(summary):
        yield f"**{note}**"
        yield ""
    for table in tables:
        yield f"## On {_name(table.corpus.name)}"
        yield ""
        yield from _table(table)
        yield ""
    yield from _macro(summary)
    for warning in rank_warnings(summary, _name):
        yield f"**{warning}**"
        yield ""
    yield how_to_read(summary)
    yield ""
    yield from _differences(summary)
    yield from _failures(tables)
    yield "## What was measured"
    yield ""
    yield from _provenance(summary, tables)


def _table(table: CorpusTable) -> Iterator[str]:
    columns = shown_columns(table.rows)
    yield _line(["candidate", *(column.heading for column in columns)])
    yield _line(["---", *("---:" for _ in columns)])
    for row in table.rows:
        instead = outcome(row)
        cells = [
            instead if instead and column.key == "kld" else column.cell(row) for column in columns
        ]
        yield _line([markdown_code_cell(row.candidate, limit=_NAME_SHOWN), *cells])


def _macro(summary: Summary) -> Iterator[str]:
    rows = macro_rows(summary)
    if not rows:
        return
    yield f"## {MACRO.capitalize()}"
    yield ""
    yield f"The mean {macro_note(summary)}."
    yield ""
    yield _line(["candidate", "mean KLD", "same top %"])
    yield _line(["---", "---:", "---:"])
    for row in rows:
        name = markdown_code_cell(row.candidate, limit=_NAME_SHOWN)
        yield _line([name, kld_with_error(row.kld_mean), percent_figure(row.same_top)])
    yield ""


def _differences(summary: Summary) -> Iterator[str]:
    compared = comparisons(summary)
    if not compared:
        return
    yield "## Differences"
    yield ""
    for corpus, comparison in compared.items():
        adjusted = holm_words(comparison)
        yield (
            f"Neighbours on {_name(corpus)}, by how much their mean KLD differs, chunk by chunk"
            f"{f'; p {adjusted}' if adjusted else ''}."
        )
        yield ""
        yield from _pairs(comparison)
        yield ""


def _pairs(comparison: Comparison) -> Iterator[str]:
    yield _line(["better", "worse", "difference", "95 % interval", "p", "verdict"])
    yield _line(["---", "---", "---:", "---:", "---:", "---"])
    for pair in neighbours(comparison):
        names = (markdown_code_cell(name, limit=_NAME_SHOWN) for name in (pair.better, pair.worse))
        figures = (difference_figure(pair), interval_figure(pair), p_figure(pair.p_holm))
        yield _line([*names, *figures, verdict(pair)])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _failures(tables: tuple[CorpusTable, ...]) -> Iterator[str]:
    failed = [(row, table) for table in tables for row in table.rows if row.status == "failed"]
    if not failed:
        return
    yield "## Failed"
    yield ""
    for row, table in failed:
        yield _failure(row, table.corpus.name)
    yield ""


def _failure(row: TableRow, corpus: str) -> str:
    cause = markdown_code(row.failure or "", limit=_CAUSE_SHOWN)
    return f"- {_name(row.candidate)} on {_name(corpus)}: {cause}"


def _provenance(summary: Summary, tables: tuple[CorpusTable, ...]) -> Iterator[str]:
    yield f"- base: {_model(summary.base)}"
    for table in tables:
        corpus = table.corpus
        yield (
            f"- corpus: {_name(corpus.name)}, {corpus_note(table)},"
            f" cut from {corpus.tokens:,} tokens{_digest(corpus.sha256)}"
        )
    for candidate, row in zip(summary.candidates, tables[0].rows if tables else (), strict=False):
        file = f", {_name(row.file)}" if row.file else ""
        yield f"- candidate: {_name(candidate.name)}{file}{_digest(candidate.sha256)}"
    yield f"- engine: {_engine(summary)}"
    yield (
        f"- run: {markdown_code(summary.run, limit=_NAME_SHOWN)},"
        f" kldcloud {markdown_code(summary.kldcloud, limit=_NAME_SHOWN)},"
        f" base stage encoding {markdown_code(summary.encoding, limit=_NAME_SHOWN)}"
    )


def _model(model: Base | Candidate) -> str:
    size = gib_figure(None if model.bytes is None else model.bytes / GIB)
    bits = bits_figure(model.bits_per_weight)
    facts = [_name(model.name)]
    if size != MISSING:
        facts.append(f"{size} GiB")
    if bits != MISSING:
        facts.append(f"{bits} bpw")
    return ", ".join(facts) + _digest(model.sha256)


def _engine(summary: Summary) -> str:
    # The name and version read as words; the rest is a fingerprint, as key=value.
    lead = [summary.engine[key] for key in ("name", "version", "backend") if key in summary.engine]
    rest = [
        f"{key}={value}"
        for key, value in summary.engine.items()
        if value and key not in {"name", "version", "backend"}
    ]
    return ", ".join(markdown_code(fact, limit=_NAME_SHOWN) for fact in [*lead, *rest] if fact)


def _name(name: str) -> str:
    return markdown_code(name, limit=_NAME_SHOWN)


def _digest(sha256: str | None) -> str:
    return f", sha256 {markdown_code(sha256[:_DIGEST_SHOWN])}" if sha256 else ""
