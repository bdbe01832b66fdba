"""The status of a distillation as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kldcloud.report.escaping import printable
from kldcloud.report.rounding import kld_figure
from kldcloud.report.running_figures import of_total, span
from kldcloud.report.status_parts import (
    LINE_SHOWN,
    STYLES,
    Line,
    heard,
    launch_lines,
    shown_name,
    silence,
)
from kldcloud.status.qad import QadStatus
from kldcloud.status.vitals import age

_MOST_TEXTS: Final = 20


def qad_status_lines(status: QadStatus, now: float) -> list[Line]:
    """The whole status; nothing in it steers a terminal.

    Args:
        status: as it was read.
        now: Unix time in seconds.
    """
    return [
        Line(f"{status.run}  {_state(status, now)}", STYLES.get(status.state, "")),
        *_pace(status, now),
        *_looks(status),
        *_result(status),
        *_warnings(status),
        *(line for launch in status.launches for line in launch_lines(launch, status.store)),
    ]


def qad_status_line(status: QadStatus, now: float) -> str:
    """The status in one line, for an output that only grows."""
    parts = [status.run, _state(status, now)]
    parts += [line.text for line in _pace(status, now)]
    if status.latest is not None:
        parts.append(
            f"held-out KLD {kld_figure(status.latest.kld)} after {_step(status.latest.step)}"
        )
    parts += [line.text for line in _warnings(status)]
    return "; ".join(parts)


def _state(status: QadStatus, now: float) -> str:
    seen = None if status.updated is None else age(status.updated, now)
    if status.state == "gone":
        return silence(seen)
    shown = status.state
    if status.stage == "measuring":
        shown += ": measuring the trained file"
    elif status.stage or status.label:
        shown += f": {shown_name(status.stage or status.label)}"
    elif status.error:
        shown += f": {printable(status.error, limit=LINE_SHOWN)}"
    return shown if seen is None else f"{shown}  {heard(seen, settled=status.settled)}"


def _pace(status: QadStatus, now: float) -> Iterator[Line]:
    if status.steps is None:
        return
    text = f"step {of_total(status.step, status.steps)}"
    if status.kld is not None:
        text += f", loss {kld_figure(status.kld)} nats a token"
    if status.tokens_a_second is not None:
        text += f", {status.tokens_a_second:,.0f} tokens/s"
    if status.eta is not None:
        text += f", about {span(max(0.0, status.eta - now))} left"
    yield Line(text)


def _looks(status: QadStatus) -> Iterator[Line]:
    start, latest, best = status.start, status.latest, status.best
    if start is None or latest is None or best is None:
        return
    text = f"held-out KLD {kld_figure(start.kld)} at the start"
    if latest != start:
        text += f", {kld_figure(latest.kld)} after {_step(latest.step)}"
        if best == latest:
            text += ", the best so far"
        elif best == start:
            text += ", and none better"
        else:
            text += f", best {kld_figure(best.kld)} after {_step(best.step)}"
    yield Line(text)


def _result(status: QadStatus) -> Iterator[Line]:
    result = status.result
    if result is None:
        return
    for line in result.verdict[:_MOST_TEXTS]:
        yield Line(printable(line, limit=LINE_SHOWN))
    if not result.student:
        yield Line("nothing was trained: the init loses less than train.skip_below")
    yield Line(f"measured by run {shown_name(result.sweep)}")
    if result.export:
        yield Line(f"the trained file is {printable(result.export, limit=LINE_SHOWN)}")


def _warnings(status: QadStatus) -> Iterator[Line]:
    if status.still is not None:
        yield Line(f"no step for {span(status.still)}: it may hang", "red")
    if status.warning:
        yield Line(printable(status.warning, limit=LINE_SHOWN), "yellow")


def _step(step: int) -> str:
    return f"step {step:,}"
