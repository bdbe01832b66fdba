"""`kldcloud launch`: run a job, or what is left of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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


def launch(
    job: JobFile,
    settings: Settings = None,
    cluster: ClusterName = None,
    store: StoreAddress = None,
    yes: Annotated[
        bool, typer.Option("-y", "--yes", help="Do not ask before money is spent.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure every candidate of a sweep; run it again to go on where it stopped."""
    from kldcloud.cli.terminal import TerminalProgress, stdout_console
    from kldcloud.pipeline.sweep import run_sweep
    from kldcloud.report.render import render
    from kldcloud.report.terminal import print_table
    from kldcloud.spec.cluster import load_cluster
    from kldcloud.spec.load import load_job
    from kldcloud.store import open_store

    del yes  # this machine costs nothing: there is nothing to ask yet
    sweep = load_job(job, overrides(settings, cluster, store))
    where = load_cluster(sweep.cluster)
    kept = open_store(sweep.store)
    progress = TerminalProgress()
    outcome = run_sweep(sweep, where, kept, progress)
    if as_json:
        typer.echo(render(outcome.summary, "json"), nl=False)
    else:
        print_table(outcome.summary, stdout_console())
    progress.note(
        f"run {outcome.run} in {outcome.seconds:.0f} s; "
        f"kldcloud report {outcome.run} --store {kept.uri} --format md|csv|json|llama"
    )
    if outcome.failures:
        from kldcloud.errors import PartialFailureError

        failed = "; ".join(
            f"{failure.group} failed at {failure.key}: {failure.cause}"
            for failure in outcome.failures.values()
        )
        raise PartialFailureError(failed, hint="the same command tries just these again")


def overrides(settings: list[str] | None, cluster: str | None, store: str | None) -> list[str]:
    """All changes to a job file, the named options last."""
    changes = list(settings or [])
    changes += [f"cluster={cluster}"] if cluster is not None else []
    changes += [f"store={store}"] if store is not None else []
    return changes
