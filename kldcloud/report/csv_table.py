"""report.csv: one row a candidate and corpus, every statistic in full precision."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import get_args, get_origin

from pydantic import BaseModel

from kldcloud.report.across_corpora import MACRO, macro_rows
from kldcloud.report.engine_facts import engine_of
from kldcloud.report.escaping import csv_text
from kldcloud.report.summary_shape import Estimate, Result, Summary
from kldcloud.report.table import CorpusTable, TableRow, corpus_tables

Cell = str | int | float | None


def render_csv(summary: Summary, origins: Mapping[str, str] = MappingProxyType({})) -> str:
    """Write a run's statistics as CSV for a spreadsheet or a data frame.

    Headings are lower-case words joined by underscores (`kld_p99_9`). An estimate fills five
    columns: its value, then `_error_naive`, `_error` (cluster-robust), `_low95` and `_high95`; a
    number of llama.cpp's block fills two, its value and `_error`. Units are those of summary.json
    (nats, fractions of one). An empty cell is a number that does not exist.

    Of several corpora there is also a row a candidate whose corpus is `macro average`: the mean
    over them with equal weights, of `kld_mean` and `same_top` alone.

    Args:
        summary: the run.
        origins: candidate -> its run, where they are from several.

    Returns:
        A heading line and one line a candidate and corpus, each ended by a newline.
    """
    results = {(found.candidate, found.corpus): found.result for found in summary.results}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    headings = [*_identity_headings(), *(heading for heading, _ in _flattened(Result, None, ""))]
    writer.writerow(headings)
    for table in corpus_tables(summary):
        for at, row in enumerate(table.rows):
            result = results.get((row.candidate, table.corpus.name))
            statistics = (cell for _, cell in _flattened(Result, result, ""))
            run = origins.get(row.candidate, summary.run)
            cells = [run, *_identity(summary, table, at, row), *statistics]
            writer.writerow(map(_written, cells))
    for over_all in _macro(summary, origins):
        writer.writerow(_written(over_all.get(heading)) for heading in headings)
    return out.getvalue()


def _written(cell: Cell) -> Cell:
    return csv_text(cell) if isinstance(cell, str) else cell


def _macro(summary: Summary, origins: Mapping[str, str]) -> Iterator[dict[str, Cell]]:
    """Rows over all corpora, by heading."""
    for row in macro_rows(summary):
        top = row.same_top.scaled(0.01)
        yield {
            "run": origins.get(row.candidate, summary.run),
            "corpus": MACRO,
            "candidate": row.candidate,
            "kld_mean": row.kld_mean.value,
            "kld_mean_error": row.kld_mean.error,
            "same_top": top.value,
            "same_top_error": top.error,
        }


def _identity_headings() -> tuple[str, ...]:
    return (
        "run",
        "corpus",
        "corpus_sha256",
        "context",
        "candidate",
        "file",
        "sha256",
        "bytes",
        "parameters",
        "bits_per_weight",
        "base",
        "base_sha256",
        "engine",
        "engine_version",
        "engine_backend",
        "kldcloud",
        "status",
        "failure",
        "rank_low",
        "rank_high",
    )


# Less the run, which the caller knows.
def _identity(summary: Summary, table: CorpusTable, at: int, row: TableRow) -> tuple[Cell, ...]:
    candidate = summary.candidates[at]
    return (
        table.corpus.name,
        table.corpus.sha256,
        table.corpus.context,
        row.candidate,
        row.file,
        candidate.sha256,
        candidate.bytes,
        candidate.parameters,
        candidate.bits_per_weight,
        summary.base.name,
        summary.base.sha256,
        *(engine_of(summary, row.candidate).get(key) for key in ("name", "version", "backend")),
        summary.kldcloud,
        row.status,
        row.failure,
        row.rank.low if row.rank else None,
        row.rank.high if row.rank else None,
    )


def _flattened(
    kind: type[BaseModel], part: BaseModel | None, prefix: str
) -> Iterator[tuple[str, Cell]]:
    # The declared shape gives the headings, so a failed row has as many cells as the others.
    for name, field in kind.model_fields.items():
        heading = f"{prefix}{name}"
        value = None if part is None else getattr(part, name)
        inner = _model_in(field.annotation)
        if inner is Estimate:
            yield from _estimate(heading, value)
        elif inner:
            yield from _flattened(inner, value, f"{heading}_")
        elif get_origin(field.annotation) is tuple:
            number, error = value or (None, None)
            yield heading, number
            yield f"{heading}_error", error
        else:
            yield heading, value


def _estimate(heading: str, estimate: Estimate | None) -> Iterator[tuple[str, Cell]]:
    low, high = (estimate.interval95 if estimate else None) or (None, None)
    yield heading, estimate.value if estimate else None
    yield f"{heading}_error_naive", estimate.error_naive if estimate else None
    yield f"{heading}_error", estimate.error if estimate else None
    yield f"{heading}_low95", low
    yield f"{heading}_high95", high


def _model_in(annotation: object) -> type[BaseModel] | None:
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None
