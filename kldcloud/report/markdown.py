"""report.md: the tables as people publish them on GitHub and on Hugging Face cards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

from kldcloud.qad.result_file import QadResult
from kldcloud.report.across_corpora import MACRO, macro_note, macro_rows
from kldcloud.report.corpus_notes import corpus_notes
from kldcloud.report.differences import comparisons, holm_words
from kldcloud.report.engine_facts import engine_words, other_engines
from kldcloud.report.escaping import markdown_code
from kldcloud.report.markdown_tables import (
    NAME_SHOWN,
    code_name,
    corpus_lines,
    look_lines,
    macro_lines,
    pair_lines,
)
from kldcloud.report.reading import corpus_note, how_to_read, progress_note, run_warnings
from kldcloud.report.rounding import MISSING, bits_figure, size_figure
from kldcloud.report.summary_shape import Base, Candidate, Summary
from kldcloud.report.table import GIB, CorpusTable, TableRow, corpus_tables
from kldcloud.report.training_text import HEADINGS, TEXT_SHOWN, look_rows, training_sentences

_DIGEST_SHOWN: Final = 12
_CAUSE_SHOWN: Final = 400


def render_markdown(
    summary: Summary,
    origins: Mapping[str, str] = MappingProxyType({}),
    training: QadResult | None = None,
) -> str:
    """Write a run's report as GitHub-flavoured Markdown.

    Args:
        summary: the run.
        origins: candidate -> its run, where they are from several.
        training: the distillation that made one of its candidates, if one did.

    Returns:
        Title, one table a corpus and one over several, how to read them, which neighbours the data
        tell apart, failures with their cause, and what was measured; ends in one newline.
    """
    return "\n".join(_lines(summary, origins, training)) + "\n"


def _lines(
    summary: Summary, origins: Mapping[str, str], training: QadResult | None
) -> Iterator[str]:
    tables = corpus_tables(summary)
    yield f"# KL divergence: {code_name(summary.name)}"
    yield ""
    if note := progress_note(summary):
        yield f"**{note}**"
        yield ""
    for table in tables:
        yield f"## On {code_name(table.corpus.name)}"
        yield ""
        yield from corpus_lines(table)
        yield ""
        for note in corpus_notes(summary, table.corpus.name, code_name):
            yield note
            yield ""
    yield from _macro(summary)
    for warning in run_warnings(summary, code_name):
        yield f"**{warning}**"
        yield ""
    yield how_to_read(summary)
    yield ""
    yield from _differences(summary)
    yield from _failures(tables)
    if training is not None:
        yield from _training(training)
    yield "## What was measured"
    yield ""
    yield from _provenance(summary, tables, origins)


def _macro(summary: Summary) -> Iterator[str]:
    rows = macro_rows(summary)
    if not rows:
        return
    yield f"## {MACRO.capitalize()}"
    yield ""
    yield f"The mean {macro_note(summary)}."
    yield ""
    yield from macro_lines(rows)
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
            f"Neighbours on {code_name(corpus)}, by how much their mean KLD differs, chunk by chunk"
            f"{f'; p {adjusted}' if adjusted else ''}."
        )
        yield ""
        yield from pair_lines(comparison)
        yield ""


def _failures(tables: tuple[CorpusTable, ...]) -> Iterator[str]:
    failed = [(row, table) for table in tables for row in table.rows if row.status == "failed"]
    if not failed:
        return
    yield "## Failed"
    yield ""
    for row, table in failed:
        yield _failure(row, table.corpus.name)
    yield ""


def _training(result: QadResult) -> Iterator[str]:
    yield "## Training"
    yield ""
    for sentence in training_sentences(result, partial(markdown_code, limit=TEXT_SHOWN)):
        yield sentence
        yield ""
    yield from look_lines(HEADINGS, look_rows(result))
    yield ""


def _failure(row: TableRow, corpus: str) -> str:
    cause = markdown_code(row.failure or "", limit=_CAUSE_SHOWN)
    return f"- {code_name(row.candidate)} on {code_name(corpus)}: {cause}"


def _provenance(
    summary: Summary, tables: tuple[CorpusTable, ...], origins: Mapping[str, str]
) -> Iterator[str]:
    yield f"- base: {_model(summary.base)}"
    for table in tables:
        corpus = table.corpus
        yield (
            f"- corpus: {code_name(corpus.name)}, {corpus_note(table)},"
            f" cut from {corpus.tokens:,} tokens{_digest(corpus.sha256)}"
        )
    for candidate, row in zip(summary.candidates, tables[0].rows if tables else (), strict=False):
        file = f", {code_name(row.file)}" if row.file else ""
        run = f", run {code_name(origins[candidate.name])}" if candidate.name in origins else ""
        yield f"- candidate: {code_name(candidate.name)}{file}{_digest(candidate.sha256)}{run}"
    yield f"- engine: {_code(engine_words(summary.engine))}"
    for name, words in other_engines(summary):
        yield f"- engine of {code_name(name)}: {_code(words)}"
    runs = [code_name(run) for run in dict.fromkeys(origins.values())] or [code_name(summary.run)]
    yield (
        f"- {'runs' if len(runs) > 1 else 'run'}: {', '.join(runs)},"
        f" kldcloud {markdown_code(summary.kldcloud, limit=NAME_SHOWN)},"
        f" base stage encoding {markdown_code(summary.encoding, limit=NAME_SHOWN)}"
    )


def _model(model: Base | Candidate) -> str:
    bits = bits_figure(model.bits_per_weight)
    facts = [code_name(model.name)]
    if model.bytes is not None:
        facts.append(size_figure(model.bytes / GIB))
    if bits != MISSING:
        facts.append(f"{bits} bpw")
    return ", ".join(facts) + _digest(model.sha256)


def _code(words: list[str]) -> str:
    return ", ".join(markdown_code(word, limit=NAME_SHOWN) for word in words)


def _digest(sha256: str | None) -> str:
    return f", sha256 {markdown_code(sha256[:_DIGEST_SHOWN])}" if sha256 else ""
