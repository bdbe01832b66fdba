"""`kldcloud logs`, `cancel` and `down`: a launch on other machines, seen from anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kldcloud.clusters.skypilot import SkyJob
    from kldcloud.pipeline.life import LaunchRecord
    from kldcloud.store.base import Store

LaunchName = Annotated[
    str,
    typer.Argument(
        metavar="LAUNCH", help="A launch or run id, a prefix of it, a job file, or `latest`."
    ),
]
LaunchStore = Annotated[
    str | None,
    typer.Option("--store", help="Where the launch writes to; a job file names its own."),
]


def logs(
    launch: LaunchName = "latest",
    store: LaunchStore = None,
) -> None:
    """Show what the machines of a launch print, until the job ends; Ctrl-C leaves it running."""
    from kldcloud.clusters import skypilot
    from kldcloud.clusters.following import follow
    from kldcloud.clusters.known_launches import find_launch, last_attempt
    from kldcloud.errors import EngineError
    from kldcloud.store import store_option

    record, kept = find_launch(launch, store)
    try:
        code = follow(_job_of(record, kept), record, kept).code
    except KeyboardInterrupt:
        typer.echo(
            f"the job goes on; kldcloud logs {record.launch} {store_option(kept.uri)} "
            "comes back to it",
            err=True,
        )
        raise typer.Exit(0) from None
    ended = last_attempt(kept, record.launch)
    finished = ended is not None and ended.state == "finished"
    if code != skypilot.SUCCEEDED and not finished:
        raise EngineError(
            f"the job of {record.launch} did not succeed",
            hint=f"kldcloud status {record.launch} {store_option(kept.uri)} says how far it came",
        )


def cancel(
    launch: LaunchName,
    store: LaunchStore = None,
) -> None:
    """End the job of a launch and give its machines back; what is committed stays."""
    from kldcloud.cli.terminal import TerminalProgress
    from kldcloud.clusters import giving_back, skypilot
    from kldcloud.clusters.known_launches import find_launch, last_attempt

    record, kept = find_launch(launch, store)
    job = skypilot.find_job(record.launch, managed=record.managed, active=True)
    if job is not None:
        skypilot.cancel(job)
    if not giving_back.give_back(record, kept, TerminalProgress()):
        raise typer.Exit(1)  # the warning says what to do
    last = last_attempt(kept, record.launch)
    if last is not None and last.state == "finished":
        typer.echo(f"{record.launch}: had finished already; its machines are given back")
        return
    typer.echo(f"{record.launch}: ended; launching its job again goes on from what is committed")


def down(
    launch: Annotated[
        str | None, typer.Argument(metavar="LAUNCH", help="As for logs and cancel.")
    ] = None,
    store: LaunchStore = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Every machine of ours, whatever store it works for.")
    ] = False,
) -> None:
    """Give machines back, whatever they are doing."""
    from kldcloud.cli.terminal import TerminalProgress
    from kldcloud.clusters import giving_back
    from kldcloud.clusters.known_launches import find_launch
    from kldcloud.errors import UserError

    if all_ == (launch is not None):
        raise UserError("name one launch, or give --all", hint="kldcloud runs shows what there is")
    if launch is not None:
        record, kept = find_launch(launch, store)
        if not giving_back.give_back(record, kept, TerminalProgress()):
            raise typer.Exit(1)  # the warning says what to do
        typer.echo(f"{record.launch}: down")
        return
    if not giving_back.give_all_back(typer.echo, TerminalProgress()):
        raise typer.Exit(1)


def _job_of(record: LaunchRecord, kept: Store) -> SkyJob:
    from kldcloud.cli.terminal import TerminalProgress
    from kldcloud.clusters import remote, skypilot
    from kldcloud.errors import UserError
    from kldcloud.store import store_option

    job = skypilot.find_job(record.launch, managed=record.managed)
    if job is None and not record.down:
        job = remote.await_machines(record, TerminalProgress())
    if job is None:
        at = f"{record.launch} {store_option(kept.uri)}"
        raise UserError(
            f"the machines of {record.launch} are gone, and their log with them",
            hint=f"kldcloud status {at} reads what the store has",
        )
    return job
