"""The published table: one row a candidate and corpus, the same numbers in every rendering."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, Literal

from kldcloud.report.differences import comparisons, rank_figure
from kldcloud.report.rounding import (
    MISSING,
    Measured,
    bits_figure,
    floor_figure,
    gib_figure,
    kld_figure,
    kld_with_error,
    rounded_to_error,
)
from kldcloud.report.summary_shape import (
    Candidate,
    Corpus,
    Estimate,
    Measurement,
    Rank,
    Summary,
)

GIB: Final = 2**30

RowStatus = Literal["complete", "failed", "missing"]


@dataclass(frozen=True, slots=True)
class TableRow:
    """One candidate on one corpus; a row that is not complete has no statistics.

    KL divergences are in nats, shares and probability changes in per cent. Errors are standard
    errors, cluster-robust by chunk, except that of `llama_kld_mean`, which treats tokens as
    independent, as llama.cpp does. `rank` is None where there is nothing to compare with,
    `times_floor` where the base was not measured against itself, or came to nothing at all.
    """

    candidate: str
    file: str | None
    status: RowStatus
    failure: str | None
    gib: float | None
    bits_per_weight: float | None
    kld_mean: Measured
    llama_kld_mean: Measured
    kld_median: float | None
    kld_p99: float | None
    kld_p99_9: float | None
    kld_maximum: float | None
    same_top: Measured
    rms_change: Measured
    ppl_ratio: Measured
    rank: Rank | None = None
    times_floor: float | None = None


@dataclass(frozen=True, slots=True)
class CorpusTable:
    """Every candidate of the run on one corpus, in the order in which the job names them."""

    corpus: Corpus
    rows: tuple[TableRow, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """A published column: its heading and how a row's cell reads."""

    key: str
    heading: str
    cell: Callable[[TableRow], str]


# The candidate's name comes before these; each renderer escapes it in its own way.
COLUMNS: Final = (
    Column("rank", "rank", lambda row: rank_figure(row.rank)),
    Column("size", "GiB", lambda row: gib_figure(row.gib)),
    Column("bits", "bpw", lambda row: bits_figure(row.bits_per_weight)),
    Column("kld", "mean KLD", lambda row: kld_with_error(row.kld_mean)),
    Column("floor", "x floor", lambda row: floor_figure(row.times_floor)),
    Column("llama_kld", "llama.cpp's mean KLD", lambda row: kld_with_error(row.llama_kld_mean)),
    Column("median", "median", lambda row: kld_figure(row.kld_median)),
    Column("p99", "99 %", lambda row: kld_figure(row.kld_p99)),
    Column("p99_9", "99.9 %", lambda row: kld_figure(row.kld_p99_9)),
    Column("maximum", "max", lambda row: kld_figure(row.kld_maximum)),
    Column("same_top", "same top %", lambda row: percent_figure(row.same_top)),
    Column("rms_change", "RMS Δp %", lambda row: percent_figure(row.rms_change)),
    Column(
        "ppl_ratio",
        "PPL ratio",
        lambda row: rounded_to_error(row.ppl_ratio, most=6, without_error=4),
    ),
)

# Beside the exact mean the heading can be short, and the naive error is in report.md.
_BARE_LLAMA_COLUMN: Final = Column(
    "llama_kld", "llama.cpp's", lambda row: kld_figure(row.llama_kld_mean.value)
)
_OPTIONAL: Final = frozenset({"rank", "floor", "llama_kld"})


def corpus_tables(summary: Summary) -> tuple[CorpusTable, ...]:
    """Arrange a summary as one table a corpus.

    A pair that the summary does not hold yet (a partial run) becomes a row of status `missing`.
    """
    found = {(result.candidate, result.corpus): result for result in summary.results}
    ranks = {
        (rank.candidate, corpus): rank
        for corpus, comparison in comparisons(summary).items()
        for rank in comparison.ranks
    }
    floors = {each.corpus: each.mean.value for each in summary.noise_floor if each.mean}
    tables = []
    for corpus in summary.corpora:
        pairs = [(candidate, (candidate.name, corpus.name)) for candidate in summary.candidates]
        floor = floors.get(corpus.name)
        rows = (table_row(each, found.get(pair), ranks.get(pair), floor) for each, pair in pairs)
        tables.append(CorpusTable(corpus, tuple(rows)))
    return tuple(tables)


def table_row(
    candidate: Candidate,
    measurement: Measurement | None,
    rank: Rank | None = None,
    floor: float | None = None,
) -> TableRow:
    """The row of one candidate, from its measurement on one corpus or from the lack of one."""
    result = measurement.result if measurement else None
    llama = result.llama if result else None
    status: RowStatus = "missing"
    failure = None
    if measurement:
        status = measurement.status
        if status == "failed":
            failure = measurement.error or "no cause recorded"
    return TableRow(
        candidate=candidate.name,
        # Where the file lay is nobody's business once the table is published.
        file=PurePosixPath(candidate.file).name if candidate.file else None,
        status=status,
        failure=failure,
        gib=None if candidate.bytes is None else candidate.bytes / GIB,
        bits_per_weight=candidate.bits_per_weight,
        kld_mean=_measured(result.kld.mean if result else None),
        llama_kld_mean=Measured(*llama.kld_mean) if llama else Measured(None, None),
        kld_median=result.kld.median if result else None,
        kld_p99=result.kld.p99 if result else None,
        kld_p99_9=result.kld.p99_9 if result else None,
        kld_maximum=result.kld.maximum if result else None,
        same_top=_measured(result.same_top if result else None).scaled(100),
        rms_change=_measured(result.probability_change.rms if result else None).scaled(100),
        ppl_ratio=_measured(result.perplexity.ratio if result else None),
        rank=rank if result else None,
        times_floor=_times(result.kld.mean.value if result else None, floor),
    )


def shown_columns(rows: tuple[TableRow, ...], *, naive_error: bool = True) -> tuple[Column, ...]:
    """The columns that have something to show: not every run has ranks or llama.cpp's KLD.

    Args:
        rows: what they would show.
        naive_error: whether llama.cpp's KLD has its ± beside it.
    """
    return tuple(
        _BARE_LLAMA_COLUMN if column.key == "llama_kld" and not naive_error else column
        for column in COLUMNS
        if column.key not in _OPTIONAL or any(column.cell(row) != MISSING for row in rows)
    )


def outcome(row: TableRow) -> str | None:
    """What stands in a row instead of its mean KLD, or None where it was measured."""
    return {"complete": None, "failed": "failed", "missing": "not measured yet"}[row.status]


def _times(mean: float | None, floor: float | None) -> float | None:
    return mean / floor if mean is not None and floor else None


def _measured(estimate: Estimate | None) -> Measured:
    if estimate is None:
        return Measured(None, None)
    return Measured(value=estimate.value, error=estimate.error)


def percent_figure(measured: Measured) -> str:
    """A share in per cent to the second digit of its error.

    Where no position differs from the others, an error of zero would say too much: it stays away.
    """
    if measured.error == 0 and measured.value in (0, 100):
        measured = Measured(measured.value, None)
    return rounded_to_error(measured, most=4, without_error=2)
