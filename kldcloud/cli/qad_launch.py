"""`launch` and `plan` of a distillation job."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from kldcloud.cli.remote_launch import Wishes
    from kldcloud.cli.terminal import TerminalProgress
    from kldcloud.pipeline.qad import QadOutcome
    from kldcloud.spec.cluster import ClusterSpec
    from kldcloud.spec.qad_job import QadJob
    from kldcloud.store.base import Store


def refuse_for_qad(**options: object) -> None:
    """Refuse options that only sweeps have.

    Raises:
        UserError: one of them was given.
    """
    from kldcloud.errors import UserError

    for name, value in options.items():
        if value is not None:
            raise UserError(f"--{name} is for sweeps, and this is a qad job", hint="leave it out")


def show_qad_plan(job: QadJob, where: ClusterSpec, rate: float | None, *, as_json: bool) -> None:
    """Print what a job would do.

    Raises:
        UserError: its files are here, and one is none that it can have.
    """
    from kldcloud.estimate.qad import plan_qad
    from kldcloud.models.sources import model_at_hand
    from kldcloud.pipeline.progress import Silent
    from kldcloud.pipeline.qad_files import check_given, given_files

    if all(model_at_hand(uri) is not None for uri in given_files(job)):
        check_given(job, Silent())
    plan = plan_qad(job, where, rate)
    typer.echo(plan.to_json() if as_json else plan.to_text())


def launch_qad(
    job: QadJob,
    where: ClusterSpec,
    progress: TerminalProgress,
    wishes: Wishes,
    *,
    rate: float | None,
    as_json: bool,
) -> None:
    """Train, measure, and print what came of it, on this machine or on others.

    Results go to stdout: the table and the verdict, or the summary alone as JSON.

    Raises:
        KldcloudError: the trained file is no better than its init; the table is printed before.
    """
    from kldcloud.pipeline.qad_copy import check_place
    from kldcloud.store import open_store

    check_place(job.export)
    kept = open_store(job.store)
    if where.remote:
        _launch_remote(job, where, kept, progress, wishes, rate=rate, as_json=as_json)
        return

    from kldcloud.cli.launch import shown_by
    from kldcloud.pipeline.qad import run_qad

    outcome = run_qad(job, where, kept, progress)
    if outcome.export:
        progress.note(f"{outcome.run} in {outcome.seconds:.0f} s: {kept.uri}/{outcome.export}")
    show_qad_outcome(outcome, as_json=as_json)
    progress.note(shown_by(outcome.run, kept))


def show_qad_outcome(outcome: QadOutcome, *, as_json: bool) -> None:
    """Print the table and the verdict of a distillation that has ended.

    Raises:
        KldcloudError: the trained file is no better than its init.
    """
    from kldcloud.cli.launch import show_summary

    show_summary(outcome.summary, as_json=as_json)
    for line in outcome.verdict.lines:
        typer.echo(line, err=as_json)
    if outcome.failed is not None:
        raise outcome.failed


def _launch_remote(
    job: QadJob,
    where: ClusterSpec,
    kept: Store,
    progress: TerminalProgress,
    wishes: Wishes,
    *,
    rate: float | None,
    as_json: bool,
) -> None:
    from kldcloud.cli.launch import show_summary, shown_by
    from kldcloud.cli.remote_launch import launch_remote
    from kldcloud.clusters.remote import check_store
    from kldcloud.errors import EngineError, StoreError
    from kldcloud.estimate.qad import plan_qad
    from kldcloud.pipeline.qad_copy import copy_folder_from_store, copy_from_store
    from kldcloud.pipeline.qad_folder import FOLDER
    from kldcloud.pipeline.runs import FoundRun, read_summary
    from kldcloud.qad.result_file import read_result

    plan = plan_qad(job, where, rate)
    check_store(kept, plan.cluster)
    ended = launch_remote(job, where, kept, progress, plan, wishes)
    if ended is None:
        return
    result = read_result(kept, f"qad/{ended.run}")
    if result is None:
        raise StoreError(f"{kept.uri} has no result of {ended.run}", hint="launch the job again")
    summary = read_summary(FoundRun(result.sweep, kept))
    if result.export:
        progress.note(f"{ended.run}: {kept.uri}/{result.export}")
        if job.export.path is not None and job.export.to == "hf":
            folder = f"qad/{ended.run}/{FOLDER}"
            copy_folder_from_store(kept, folder, job.export.path, progress)
        elif job.export.path is not None:
            copy_from_store(kept, summary, result.student, job.export.path, progress)
    show_summary(summary, as_json=as_json)
    for line in result.verdict:
        typer.echo(line, err=as_json)
    if result.failed is not None:
        raise EngineError(result.failed)
    progress.note(shown_by(result.run, kept))
