"""`kldcloud launch`: run a job, or what is left of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kldcloud.cli.terminal import TerminalProgress
    from kldcloud.clusters.remote import Ended
    from kldcloud.pipeline.sweep import SweepOutcome
    from kldcloud.report.summary_shape import Summary
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
    from kldcloud.cli.qad_launch import launch_qad, show_qad_plan
    from kldcloud.cli.remote_launch import Wishes, launch_remote
    from kldcloud.cli.terminal import TerminalProgress
    from kldcloud.pipeline.sweep import run_sweep
    from kldcloud.spec.cluster import cluster_name, load_cluster
    from kldcloud.spec.load import load_job
    from kldcloud.spec.qad_job import QadJob
    from kldcloud.store import open_store

    wanted = load_job(job, overrides(settings, cluster, store))
    where = load_cluster(wanted.cluster)
    progress = TerminalProgress()
    wishes = Wishes(yes=yes, detach=detach, max_cost=max_cost, allow_mixed=allow_mixed)
    if isinstance(wanted, QadJob):
        if dry_run:
            show_qad_plan(wanted, where, rate, as_json=as_json)
        else:
            launch_qad(wanted, where, progress, wishes, rate=rate, as_json=as_json)
        return
    if dry_run:
        estimate = make_estimate(wanted, where, rate, progress)
        typer.echo(estimate.to_json() if as_json else estimate.to_text())
        return
    kept = open_store(wanted.store)
    if where.remote:
        from kldcloud.clusters.remote import check_store

        check_store(kept, cluster_name(wanted.cluster))
        estimate = make_estimate(wanted, where, rate, progress)
        ended = launch_remote(wanted, where, kept, progress, estimate, wishes)
        if ended is not None:
            _show_ended(ended, kept, progress, as_json=as_json)
        return
    outcome = run_sweep(wanted, where, kept, progress)
    show_outcome(outcome, as_json=as_json)
    progress.note(f"run {outcome.run} in {outcome.seconds:.0f} s; {shown_by(outcome.run, kept)}")


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


def shown_by(run: str, kept: Store) -> str:
    """The command that shows a run again, to paste into a shell, and what else it may print."""
    from kldcloud.report.html import FIGURE_FORMATS
    from kldcloud.report.render import FORMATS
    from kldcloud.store import store_option

    return (
        f"kldcloud report {run} {store_option(kept.uri)} shows it again, "
        f"--format as {'|'.join((*FORMATS, *FIGURE_FORMATS))}"
    )


def overrides(settings: list[str] | None, cluster: str | None, store: str | None) -> list[str]:
    """All changes to a job file, the named options last."""
    changes = list(settings or [])
    changes += [f"cluster={cluster}"] if cluster is not None else []
    changes += [f"store={store}"] if store is not None else []
    return changes


def _show_ended(ended: Ended, kept: Store, progress: TerminalProgress, *, as_json: bool) -> None:
    from kldcloud.pipeline.runs import FoundRun, read_summary

    show_summary(read_summary(FoundRun(ended.run, kept)), as_json=as_json)
    if ended.failed is not None:
        raise ended.failed
    progress.note(f"run {ended.run}; {shown_by(ended.run, kept)}")
