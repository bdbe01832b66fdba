"""`kldcloud plan`: what a job would do, before anything runs."""

from __future__ import annotations

from typing import Annotated

import typer

from kldcloud.cli.launch import AsJson, ClusterName, JobFile, Settings, StoreAddress, overrides


def plan(
    job: JobFile,
    settings: Settings = None,
    cluster: ClusterName = None,
    store: StoreAddress = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=1e-3, max=1e12, help="Tokens a second of one worker, instead of a calibration."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show tokens, rows, bytes an encoding and time; nothing is written to the store."""
    from kldcloud.cli.terminal import TerminalProgress
    from kldcloud.pipeline.estimate import estimate_sweep
    from kldcloud.spec.cluster import load_cluster
    from kldcloud.spec.load import load_job

    sweep = load_job(job, overrides(settings, cluster, store))
    estimate = estimate_sweep(sweep, load_cluster(sweep.cluster), rate, TerminalProgress())
    typer.echo(estimate.to_json() if as_json else estimate.to_text())
