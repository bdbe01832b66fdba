"""`launch` and `plan` of a distillation job."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from kldcloud.cli.terminal import TerminalProgress
    from kldcloud.spec.cluster import ClusterSpec
    from kldcloud.spec.qad_job import QadJob


def refuse_for_qad(**options: object) -> None:
    """Refuse options that only sweeps have.

    Raises:
        UserError: one of them was given.
    """
    from kldcloud.errors import UserError

    for name, value in options.items():
        if value is not None:
            raise UserError(f"--{name} is for sweeps, and this is a qad job", hint="leave it out")


def show_qad_plan(job: QadJob, where: ClusterSpec, *, as_json: bool) -> None:
    """Print what a job would do.

    Raises:
        UserError: it names a cluster on which nothing can be trained.
    """
    from kldcloud.estimate.qad import QadPlan

    _refuse_remote(job, where)
    plan = QadPlan(job)
    typer.echo(plan.to_json() if as_json else plan.to_text())


def launch_qad(
    job: QadJob, where: ClusterSpec, progress: TerminalProgress, *, dry_run: bool, as_json: bool
) -> None:
    """Train, measure, and print what came of it; or only what would be done.

    Results go to stdout: the table and the verdict, or the summary alone as JSON.

    Raises:
        UserError: it names a cluster on which nothing can be trained.
        KldcloudError: the trained file is no better than its init; the table is printed before.
    """
    if dry_run:
        show_qad_plan(job, where, as_json=as_json)
        return
    _refuse_remote(job, where)

    from kldcloud.cli.launch import formats, show_summary
    from kldcloud.pipeline.qad import run_qad
    from kldcloud.store import open_store

    kept = open_store(job.store)
    outcome = run_qad(job, where, kept, progress)
    show_summary(outcome.summary, as_json=as_json)
    for line in outcome.verdict.lines:
        typer.echo(line, err=as_json)
    if outcome.export:
        progress.note(f"{outcome.run} in {outcome.seconds:.0f} s: {kept.uri}/{outcome.export}")
    if outcome.failed is not None:
        raise outcome.failed
    progress.note(
        f"kldcloud report {outcome.run} --store {kept.uri} --format {formats()} shows it again"
    )


def _refuse_remote(job: QadJob, where: ClusterSpec) -> None:
    from kldcloud.errors import UserError

    if where.remote:
        raise UserError(
            f"training runs on cluster: local for now, not on {job.cluster}",
            hint="add --cluster local",
        )
