"""`kldcloud launch`: run a job, or what is left of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kldcloud.cli.terminal import TerminalProgress
    from kldcloud.pipeline.sweep import SweepOutcome
    from kldcloud.report.summary_shape import Summary
    from kldcloud.spec.cluster import ClusterSpec
    from kldcloud.spec.job import SweepJob
    from kldcloud.store.base import Store

JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="Such as jobs/demo.yaml.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change the job: key=value, such as corpora[0].chunks=4."),
]
ClusterName = Annotated[
    str | None, typer.Option("--cluster", help="Run there instead: a name or a cluster file.")
]
StoreAddress = Annotated[
    str | None, typer.Option("--store", help="Keep results there: a folder or s3://bucket/prefix.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Rate = Annotated[
    float | None,
    typer.Option(min=1e-3, max=1e12, help="Tokens a second of one worker, for the plan."),
]


def launch(
    job: JobFile,
    settings: Settings = None,
    cluster: ClusterName = None,
    store: StoreAddress = None,
    yes: Annotated[
        bool, typer.Option("-y", "--yes", help="Do not ask before money is spent.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("-d", "--detach", help="Return once the machines have the job.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and stop there.")
    ] = False,
    max_cost: Annotated[
        float | None,
        typer.Option(min=0.0, help="US dollars: refuse a plan above it, and stop machines at it."),
    ] = None,
    rate: Rate = None,
    allow_mixed: Annotated[
        bool, typer.Option(help="Let machines whose engines differ share the work, on record.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a sweep or a distillation; run it again to go on where it stopped."""
    from kldcloud.cli.plan import make_estimate
    from kldcloud.cli.qad_launch import launch_qad, refuse_for_qad
    from kldcloud.cli.terminal import TerminalProgress
    from kldcloud.pipeline.sweep import run_sweep
    from kldcloud.spec.cluster import load_cluster
    from kldcloud.spec.load import load_job
    from kldcloud.spec.qad_job import QadJob
    from kldcloud.store import open_store

    wanted = load_job(job, overrides(settings, cluster, store))
    where = load_cluster(wanted.cluster)
    progress = TerminalProgress()
    if isinstance(wanted, QadJob):
        refuse_for_qad(rate=rate)
        launch_qad(wanted, where, progress, dry_run=dry_run, as_json=as_json)
        return
    if dry_run:
        estimate = make_estimate(wanted, where, rate, progress)
        typer.echo(estimate.to_json() if as_json else estimate.to_text())
        return
    kept = open_store(wanted.store)
    if where.remote:
        _launch_remote(
            wanted,
            where,
            kept,
            progress,
            yes=yes,
            detach=detach,
            max_cost=max_cost,
            rate=rate,
            allow_mixed=allow_mixed,
            as_json=as_json,
        )
        return
    outcome = run_sweep(wanted, where, kept, progress)
    show_outcome(outcome, as_json=as_json)
    progress.note(
        f"run {outcome.run} in {outcome.seconds:.0f} s; "
        f"kldcloud report {outcome.run} --store {kept.uri} --format {formats()}"
    )


def show_outcome(outcome: SweepOutcome, *, as_json: bool) -> None:
    """Print a finished run's table.

    Raises:
        PartialFailureError: if some of its candidates failed.
    """
    show_summary(outcome.summary, as_json=as_json)
    if outcome.failures:
        from kldcloud.clusters.node import partial_failure

        failed = partial_failure(outcome)
        assert failed is not None  # noqa: S101 - there are failures
        raise failed


def show_summary(summary: Summary, *, as_json: bool) -> None:
    """Print the table of a run."""
    from kldcloud.cli.terminal import stdout_console
    from kldcloud.report.render import render
    from kldcloud.report.terminal import print_table

    if as_json:
        typer.echo(render(summary, "json"), nl=False)
    else:
        print_table(summary, stdout_console())


def formats() -> str:
    """All that `kldcloud report --format` takes, as usage lines have it."""
    from kldcloud.report.render import FORMATS

    return "|".join(FORMATS)


def overrides(settings: list[str] | None, cluster: str | None, store: str | None) -> list[str]:
    """All changes to a job file, the named options last."""
    changes = list(settings or [])
    changes += [f"cluster={cluster}"] if cluster is not None else []
    changes += [f"store={store}"] if store is not None else []
    return changes


def _launch_remote(
    sweep: SweepJob,
    where: ClusterSpec,
    kept: Store,
    progress: TerminalProgress,
    *,
    yes: bool,
    detach: bool,
    max_cost: float | None,
    rate: float | None,
    allow_mixed: bool,
    as_json: bool,
) -> None:
    from kldcloud.cli.plan import make_estimate
    from kldcloud.clusters import remote
    from kldcloud.estimate.sweep import refuse_above, refuse_without_access
    from kldcloud.pipeline.runs import FoundRun, read_summary
    from kldcloud.spec.cluster import cluster_name

    name = cluster_name(sweep.cluster)
    remote.check_store(kept, name)
    estimate = make_estimate(sweep, where, rate, progress)
    typer.echo(estimate.to_text(), err=True)
    refuse_without_access(estimate)
    seconds = float(where.max_duration)
    if max_cost is not None:
        refuse_above(estimate, max_cost)
        if estimate.hourly:
            seconds = min(seconds, max_cost / estimate.hourly * 3600)
    if not yes:
        _ask()
    machine = remote.Machine(estimate.machine, estimate.hourly or 0.0)
    started = remote.start(
        sweep, where, name, kept, machine, progress, seconds=seconds, allow_mixed=allow_mixed
    )
    launch_name = started.record.launch
    come_back = f"--store {kept.uri}"
    if detach:
        progress.note(f"kldcloud status {launch_name} {come_back} -w shows how far it is")
        typer.echo(launch_name)
        return
    try:
        followed = remote.follow(started, kept)
    except KeyboardInterrupt:
        progress.note(
            f"the job goes on without this terminal; kldcloud logs {launch_name} {come_back} "
            f"comes back to it, kldcloud cancel {launch_name} {come_back} ends it"
        )
        raise typer.Exit(0) from None
    ended = remote.finish(started, followed, kept, progress)
    show_summary(read_summary(FoundRun(ended.run, kept)), as_json=as_json)
    if ended.failed is not None:
        raise ended.failed
    progress.note(f"run {ended.run}; kldcloud report {ended.run} {come_back} --format {formats()}")


def _ask() -> None:
    """Ask whether to go on; without a terminal to ask at, refuse."""
    from kldcloud.errors import UserError

    if not sys.stdin.isatty():
        raise UserError(
            "nobody to ask whether to go on: this is no terminal", hint="add -y to go on unasked"
        )
    if not typer.confirm("launch?", err=True):
        raise UserError("not launched", hint="nothing was spent")
