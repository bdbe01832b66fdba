"""`kldcloud plan`: what a job would do, before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kldcloud.cli.launch import (
    AsJson,
    ClusterName,
    JobFile,
    Rate,
    Settings,
    StoreAddress,
    overrides,
)

if TYPE_CHECKING:
    from kldcloud.estimate.sweep import SweepEstimate
    from kldcloud.pipeline.progress import Progress
    from kldcloud.spec.cluster import ClusterSpec
    from kldcloud.spec.job import SweepJob


def plan(
    job: JobFile,
    settings: Settings = None,
    cluster: ClusterName = None,
    store: StoreAddress = None,
    rate: Rate = None,
    pilot: Annotated[
        str | None,
        typer.Option(help="A run whose chunks tell how far a job with `stop:` would go."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show tokens, rows, bytes, hours and money; nothing is spent, or written to the store."""
    from kldcloud.cli.qad_launch import refuse_for_qad, show_qad_plan
    from kldcloud.cli.terminal import TerminalProgress
    from kldcloud.spec.cluster import load_cluster
    from kldcloud.spec.load import load_job
    from kldcloud.spec.qad_job import QadJob

    wanted = load_job(job, overrides(settings, cluster, store))
    where = load_cluster(wanted.cluster)
    if isinstance(wanted, QadJob):
        refuse_for_qad(pilot=pilot)
        show_qad_plan(wanted, where, rate, as_json=as_json)
        return
    estimate = make_estimate(wanted, where, rate, TerminalProgress())
    if pilot is not None:
        from dataclasses import replace

        from kldcloud.estimate.pilot import forecasts

        chunks = {each.name: each.chunks for each in estimate.corpora}
        estimate = replace(estimate, forecasts=forecasts(wanted, chunks, pilot))
    typer.echo(estimate.to_json() if as_json else estimate.to_text())


def make_estimate(
    sweep: SweepJob, where: ClusterSpec, rate: float | None, progress: Progress
) -> SweepEstimate:
    """The plan of a job that has been read; see `estimate_sweep`."""
    from kldcloud.estimate.sweep import estimate_sweep

    return estimate_sweep(sweep, where, rate, progress)
