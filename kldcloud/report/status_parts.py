"""What statuses of every kind say alike: names, launches, signs of life."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from kldcloud.report.escaping import printable
from kldcloud.report.running_figures import span
from kldcloud.status.launch import LaunchStatus
from kldcloud.store import store_option

LINE_SHOWN: Final = 400
_NAME_SHOWN: Final = 48
STYLES: Final = {
    "running": "green",
    "finished": "bold green",
    "failed": "red",
    "out-of-time": "red",
    "stopped": "yellow",
    "gone": "yellow",
}


@dataclass(frozen=True, slots=True)
class Line:
    """A line and its style, in rich's words."""

    text: str
    style: str = ""


def silence(seconds: float | None) -> str:
    """What is said of a run that nobody works on; seconds since its last sign of life."""
    lately = "" if seconds is None else f" for {span(seconds)}"
    return f"no sign of life{lately}: the driver is gone; launch the job again to go on"


def heard(seconds: float, *, settled: bool) -> str:
    return f"({'' if settled else 'last sign of life '}{span(seconds)} ago)"


def launch_lines(launch: LaunchStatus, store: str) -> Iterator[Line]:
    record = launch.record
    if record is None:
        yield Line(f"launch {launch.launch}: its record cannot be read", "yellow")
        return
    where = printable(record.machine or record.cluster, limit=_NAME_SHOWN)
    nodes = f"{record.nodes:,} x " if record.nodes > 1 else ""
    text = f"launch {launch.launch}: {nodes}{where}" if where else f"launch {launch.launch}"
    if record.hourly:
        text += f", ${record.hourly:,.2f} an hour, about ${launch.cost:,.2f} so far"
    if len(launch.attempts) > 1:
        text += f", {len(launch.attempts):,} attempts"
    yield Line(text)
    if launch.maybe_up:
        yield Line(
            "warning: machines may still be up: "
            f"kldcloud down {launch.launch} {store_option(store)}",
            "bold yellow",
        )


def shown_name(text: str) -> str:
    return printable(text, limit=_NAME_SHOWN)
