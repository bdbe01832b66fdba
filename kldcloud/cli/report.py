"""`kldcloud report`: show a run again, in any format."""

from __future__ import annotations

from typing import Annotated

import typer

RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="A run id or a prefix of it, a job file, or `latest`.")
]
RunStore = Annotated[
    str | None, typer.Option("--store", help="Where the run is kept; a job file names its own.")
]


def report(
    run: RunName,
    store: RunStore = None,
    format: Annotated[  # noqa: A002 - the option's name
        str | None,
        typer.Option(
            "--format", help="md, json, csv, llama, reddit or hf-card; a table if left out."
        ),
    ] = None,
    candidate: Annotated[str | None, typer.Option(help="Only this one (llama).")] = None,
    corpus: Annotated[str | None, typer.Option(help="Only this one (llama).")] = None,
    pair: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Only how these two candidates differ."),
    ] = None,
) -> None:
    """Show a run's results."""
    from kldcloud.cli.terminal import stdout_console
    from kldcloud.errors import UserError
    from kldcloud.pipeline.runs import find_run, read_summary
    from kldcloud.report.llama_text import render_llama
    from kldcloud.report.pair_text import render_pair
    from kldcloud.report.render import render
    from kldcloud.report.terminal import print_table, print_text

    if format != "llama" and (candidate is not None or corpus is not None):
        raise UserError(
            "--candidate and --corpus choose blocks of --format llama",
            hint="leave them out, or add --format llama",
        )
    if pair is not None and format is not None:
        raise UserError("--pair is text, and no part of a format", hint="leave one of them out")
    found = find_run(run, store)
    summary = read_summary(found)
    if pair is not None:
        print_text(render_pair(summary, *pair), stdout_console())
    elif format is None:
        print_table(summary, stdout_console())
    elif format == "llama":
        typer.echo(render_llama(summary, candidate, corpus), nl=False)
    else:
        typer.echo(render(summary, format), nl=False)
