"""`kldcloud status` and `kldcloud runs`: what a store knows of runs, from any machine."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console
    from rich.text import Text

    from kldcloud.report.status_parts import Line
    from kldcloud.status.qad import QadStatus
    from kldcloud.status.reader import StatusReader
    from kldcloud.status.status import Status

LIVE_SECONDS = 3.0
"""Between two looks where a terminal is redrawn."""
LINE_SECONDS = 10.0
"""Between two lines elsewhere: as often as a driver writes its heartbeat."""

Store = Annotated[
    str | None, typer.Option("--store", help="Where to look; a job file names its own.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def status(
    run: Annotated[
        str,
        typer.Argument(
            metavar="[RUN]",
            help="A run or launch id or a prefix of it, a job file, or `latest`.",
            show_default=False,
        ),
    ] = "latest",
    store: Store = None,
    watch: Annotated[
        bool, typer.Option("-w", "--watch", help="Look again until it is over; Ctrl-C ends it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show how far a run is, who works on it, and what it has cost."""
    from kldcloud.status.reader import StatusReader
    from kldcloud.status.subject import find_status

    reader = StatusReader(find_status(run, store))
    if watch:
        try:
            _watch(reader, as_json=as_json)
        except KeyboardInterrupt:
            return
    elif as_json:
        from kldcloud.report.status_json import status_facts

        typer.echo(json.dumps(status_facts(reader.read(time.time())), indent=2))
    else:
        _show(reader.read(time.time()))


def runs(store: Store = None, as_json: AsJson = False) -> None:
    """List the runs of a store, the newest last."""
    from kldcloud.cli.terminal import stdout_console
    from kldcloud.pipeline.runs import DEFAULT_STORE
    from kldcloud.report.status_json import run_facts
    from kldcloud.report.status_text import run_lines
    from kldcloud.status.run_list import list_runs
    from kldcloud.store import open_store

    kept = open_store(store or DEFAULT_STORE)
    now = time.time()
    found = list_runs(kept, now)
    if as_json:
        facts = {"store": kept.uri, "runs": [run_facts(each) for each in found]}
        typer.echo(json.dumps(facts, indent=2))
    elif found:
        console = stdout_console()
        for text in _texts(run_lines(found, now), console):
            console.print(text, soft_wrap=True)
    else:
        typer.echo(f"no runs in {kept.uri}")


def _watch(reader: StatusReader, *, as_json: bool) -> None:
    from kldcloud.cli.terminal import encodable, stdout_console

    console = stdout_console()
    if console.is_terminal and not as_json:
        _redraw(reader, console)
        return
    from kldcloud.report.status_json import status_facts
    from kldcloud.report.status_text import status_line

    for seen, now in _looks(reader, LINE_SECONDS):
        if as_json:
            typer.echo(json.dumps(status_facts(seen)))
        elif seen.settled:
            _show(seen)
        else:
            typer.echo(encodable(status_line(seen, now), console))


def _redraw(reader: StatusReader, console: Console) -> None:
    from rich.console import Group
    from rich.live import Live

    from kldcloud.report.status_text import status_lines

    with Live(console=console, auto_refresh=False) as live:
        for seen, now in _looks(reader, LIVE_SECONDS):
            live.update(Group(*_texts(status_lines(seen, now), console)), refresh=True)


def _looks(reader: StatusReader, seconds: float) -> Iterator[tuple[Status | QadStatus, float]]:
    """Statuses and when they were read, until one that stays as it is."""
    from kldcloud.cli.terminal import errors
    from kldcloud.errors import StoreError

    while True:
        now = time.time()
        try:
            seen = reader.read(now)
        except StoreError as error:
            # A network that is away for a while ends no watch; Ctrl-C does.
            errors.print(f"{error}; looking again", style="dim", markup=False)
        else:
            yield seen, now
            if seen.settled:
                return
        time.sleep(seconds)


def _show(seen: Status | QadStatus) -> None:
    from kldcloud.cli.terminal import stdout_console
    from kldcloud.report.status_text import status_lines

    console = stdout_console()
    for text in _texts(status_lines(seen, time.time()), console):
        console.print(text, soft_wrap=True)


def _texts(lines: Sequence[Line], console: Console) -> list[Text]:
    from rich.text import Text

    from kldcloud.cli.terminal import encodable

    # Text, not markup: a name with brackets stays what it is.
    return [Text(encodable(line.text, console), style=line.style) for line in lines]
