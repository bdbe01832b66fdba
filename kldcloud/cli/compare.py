"""`kldcloud compare`: candidates of several runs in one table."""

from __future__ import annotations

from typing import Annotated

import typer

from kldcloud.cli.report import RunStore


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run ids or prefixes of them, job files, `latest`."),
    ],
    store: RunStore = None,
    corpus: Annotated[str | None, typer.Option(help="Only this one, where runs have several.")] = (
        None
    ),
    format: Annotated[  # noqa: A002 - the option's name
        str | None, typer.Option("--format", help="md, csv or json; a table if left out.")
    ] = None,
) -> None:
    """Rank the candidates of several runs, and say which of them the data tell apart."""
    from kldcloud.cli.terminal import stdout_console
    from kldcloud.pipeline.compare_runs import compare_runs
    from kldcloud.pipeline.runs import find_run
    from kldcloud.report.compared import check_format, print_compared, render_compared

    if format is not None:
        check_format(format)
    compared = compare_runs([find_run(run, store) for run in runs], corpus)
    if format is None:
        print_compared(compared, stdout_console())
    else:
        typer.echo(render_compared(compared, format), nl=False)
