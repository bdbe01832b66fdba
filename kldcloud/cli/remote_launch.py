"""A launch on other machines as a person sees it: the plan, a question, the job's log, its end."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from kldcloud.cli.terminal import TerminalProgress
    from kldcloud.clusters.remote import Ended
    from kldcloud.estimate.cost import Rented
    from kldcloud.spec.cluster import ClusterSpec
    from kldcloud.spec.load import Job
    from kldcloud.store.base import Store


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a person says of a launch on other machines.

    Attributes:
        yes: whether to go on unasked.
        detach: whether to return once the machines have the job.
        max_cost: USD; None sets no bound.
        allow_mixed: whether machines whose engines differ may share the work.
    """

    yes: bool
    detach: bool
    max_cost: float | None
    allow_mixed: bool


def launch_remote(
    job: Job,
    where: ClusterSpec,
    kept: Store,
    progress: TerminalProgress,
    estimate: Rented,
    wishes: Wishes,
) -> Ended | None:
    """Show what a launch would take, ask, rent, and stay to the end.

    Returns:
        How it ended; None where it goes on without this terminal.

    Raises:
        UserError: nobody agreed to it, or it may cost too much.
        KldcloudError: it failed; its machines are given back.
    """
    from kldcloud.clusters import remote
    from kldcloud.estimate.sweep import refuse_above, refuse_without_access
    from kldcloud.spec.cluster import cluster_name
    from kldcloud.store import store_option

    name = cluster_name(job.cluster)
    typer.echo(estimate.to_text(), err=True)
    refuse_without_access(estimate)
    seconds = float(where.max_duration)
    if wishes.max_cost is not None:
        refuse_above(estimate, wishes.max_cost)
        if estimate.hourly:
            seconds = min(seconds, wishes.max_cost / estimate.hourly * 3600)
    if not wishes.yes:
        _ask()
    machine = remote.Machine(estimate.machine, estimate.hourly or 0.0)
    started = remote.start(
        job, where, name, kept, machine, progress, seconds=seconds, allow_mixed=wishes.allow_mixed
    )
    launch_name = started.record.launch
    come_back = store_option(kept.uri)
    if wishes.detach:
        progress.note(f"kldcloud status {launch_name} {come_back} -w shows how far it is")
        typer.echo(launch_name)
        return None
    try:
        followed = remote.follow(started, kept)
    except KeyboardInterrupt:
        progress.note(
            f"the job goes on without this terminal; kldcloud logs {launch_name} {come_back} "
            f"comes back to it, kldcloud cancel {launch_name} {come_back} ends it"
        )
        return None
    return remote.finish(started, followed, kept, progress)


def _ask() -> None:
    """Ask whether to go on; without a terminal to ask at, refuse."""
    from kldcloud.errors import UserError

    if not sys.stdin.isatty():
        raise UserError(
            "nobody to ask whether to go on: this is no terminal", hint="add -y to go on unasked"
        )
    if not typer.confirm("launch?", err=True):
        raise UserError("not launched", hint="nothing was spent")
