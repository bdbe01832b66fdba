"""A status as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rich.cells import cell_len

from kldcloud.report.escaping import printable
from kldcloud.report.qad_status_text import qad_status_line, qad_status_lines
from kldcloud.report.rounding import MISSING
from kldcloud.report.running_figures import mean_figure, of_total, span, top_figure
from kldcloud.report.status_parts import (
    LINE_SHOWN,
    STYLES,
    Line,
    heard,
    launch_lines,
    shown_name,
    silence,
)
from kldcloud.status.progress import ResultStatus
from kldcloud.status.qad import QadStatus
from kldcloud.status.run_list import RunLine
from kldcloud.status.status import Status
from kldcloud.status.vitals import WorkerFinding, WorkersStatus, age

_MOST_LINES: Final = 20
_GAP: Final = "  "
_UNITS: Final = {"run": "chunks", "qad": "steps"}
_STAGES: Final = {"staging": "staging base", "measuring": "measuring", "reducing": "reducing"}


def status_lines(status: Status | QadStatus, now: float) -> list[Line]:
    """The whole status; nothing in it steers a terminal.

    Args:
        status: as it was read.
        now: Unix time in seconds.
    """
    if isinstance(status, QadStatus):
        return qad_status_lines(status, now)
    return [
        Line(f"{_subject(status)}  {_state(status, now)}", STYLES.get(status.state, "")),
        *_bases(status),
        *_results(status.results),
        *_pace(status, now),
        *_workers(status.workers),
        *_warnings(status),
        *(line for launch in status.launches for line in launch_lines(launch, status.store)),
    ]


def status_line(status: Status | QadStatus, now: float) -> str:
    """The status in one line, for an output that only grows."""
    if isinstance(status, QadStatus):
        return qad_status_line(status, now)
    parts = [_subject(status), _state(status, now)]
    parts += [f"{line.text}" for line in _pace(status, now)]
    for each in status.results:
        if each.kld is not None:
            parts.append(
                f"{shown_name(each.candidate)} on {shown_name(each.corpus)} {mean_figure(each)}"
            )
    if status.workers and status.workers.stuck:
        parts.append(f"{len(status.workers.stuck)} stuck")
    return "; ".join(parts)


def run_lines(runs: Sequence[RunLine], now: float) -> list[Line]:
    """A line a run, the newest last."""
    rows = [["run or launch", "state", "done", "started", "last sign of life"]]
    rows += [
        [
            each.id,
            each.state,
            _done(each),
            MISSING if each.started is None else f"{span(age(each.started, now))} ago",
            MISSING if each.updated is None else f"{span(age(each.updated, now))} ago",
        ]
        for each in runs
    ]
    styles = ["dim", *(STYLES.get(each.state, "") for each in runs)]
    return [Line(text, style) for text, style in zip(_aligned(rows), styles, strict=True)]


def _done(run: RunLine) -> str:
    unit = _UNITS.get(run.kind)
    return f"{of_total(run.done, run.total)} {unit}" if unit else MISSING


def _subject(status: Status) -> str:
    return status.run or " ".join(each.launch for each in status.launches)


def _state(status: Status, now: float) -> str:
    seen = None if status.updated is None else age(status.updated, now)
    if status.state == "gone":
        return silence(seen)
    shown = status.state
    if status.state == "starting":
        shown += ": nothing heard from its machines yet"
    elif status.state in {"running", "preparing"}:
        shown += _under_way(status)
    elif status.error:
        shown += f": {printable(status.error, limit=LINE_SHOWN)}"
    if seen is None:
        return shown
    return f"{shown}  {heard(seen, settled=status.settled)}"


def _under_way(status: Status) -> str:
    """The stage, and the label where it says more."""
    stage, label = _STAGES.get(status.stage, ""), shown_name(status.label)
    if status.state == "preparing":
        stage = ""
    if not label or not stage or label.startswith(status.stage):
        return f": {label or stage}" if label or stage else ""
    return f": {stage}, {label}"


def _bases(status: Status) -> Iterator[Line]:
    for each in status.stages:
        whole = "" if each.complete or each.shards_done != each.shards else ", not closed yet"
        encoding = f" as {status.encoding}" if status.encoding else ""
        shards = of_total(each.shards_done, each.shards)
        yield Line(f"base on {shown_name(each.corpus)}{encoding}: {shards} shards{whole}")


def _results(results: Sequence[ResultStatus]) -> Iterator[Line]:
    if not results:
        return
    rows = [["corpus", "candidate", "chunks", "mean KLD", "same top %"]]
    rows += [
        [
            shown_name(each.corpus),
            shown_name(each.candidate),
            of_total(each.chunks_done, each.chunks),
            mean_figure(each),
            top_figure(each),
        ]
        for each in results
    ]
    for at, text in enumerate(_aligned(rows)):
        yield Line(text, "" if at else "dim")


def _pace(status: Status, now: float) -> Iterator[Line]:
    if not status.total or status.state == "finished":
        return
    text = f"{of_total(status.done, status.total)} chunk evaluations"
    if status.tokens_a_second is not None:
        text += f", {status.tokens_a_second:,.0f} tokens/s"
    if status.eta is not None:
        text += f", about {span(max(0.0, status.eta - now))} left"
    yield Line(text)


def _workers(workers: WorkersStatus | None) -> Iterator[Line]:
    if workers is None:
        return
    yield Line(f"workers: {workers.alive:,} of {workers.count:,} have beaten lately")
    for each in workers.stuck[:_MOST_LINES]:
        yield Line(
            f"{_worker(each)} is stuck: nothing done for {span(each.seconds)}"
            f" at {printable(each.task, limit=LINE_SHOWN)}",
            "red",
        )
    for each in workers.silent[:_MOST_LINES]:
        yield Line(f"{_worker(each)} has been silent for {span(each.seconds)}", "yellow")


def _worker(found: WorkerFinding) -> str:
    return f"worker {found.worker} on {shown_name(found.host)}"


def _warnings(status: Status) -> Iterator[Line]:
    failures = list(status.failures)
    for each in failures[:_MOST_LINES]:
        yield Line(f"given up: {printable(each, limit=LINE_SHOWN)}", "red")
    if len(failures) > _MOST_LINES:
        yield Line(f"and {len(failures) - _MOST_LINES:,} more given up", "red")
    for key, why in list(status.odd.items())[:_MOST_LINES]:
        yield Line(f"passed over {key}: {printable(why, limit=LINE_SHOWN)}", "yellow")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return [
        _GAP.join(
            cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
