"""`kldcloud report`: show a run again, in any format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from kldcloud.report.html import FigureFormat
    from kldcloud.report.summary_shape import Summary

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
            "--format",
            help="md, json, csv, llama, reddit, hf-card, html, svg or png; a table if left out.",
        ),
    ] = None,
    candidate: Annotated[str | None, typer.Option(help="Only this one (llama).")] = None,
    corpus: Annotated[str | None, typer.Option(help="Only this one (llama, svg, png).")] = None,
    pair: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Only how these two candidates differ."),
    ] = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Show the page in a browser (html).")
    ] = False,
) -> None:
    """Show a run's results; of a distillation, what it gained and the sweep that measured it."""
    from kldcloud.cli.terminal import errors, stdout_console
    from kldcloud.pipeline.qad_runs import find_reported
    from kldcloud.pipeline.runs import read_profiles, read_summary, read_worst
    from kldcloud.report.html import FIGURE_FORMATS, render_html
    from kldcloud.report.llama_text import order_notes, render_llama
    from kldcloud.report.markdown import render_markdown
    from kldcloud.report.pair_text import render_pair
    from kldcloud.report.render import render
    from kldcloud.report.terminal import print_table, print_text, print_training

    _refuse_contradictions(
        format, candidate=candidate, corpus=corpus, paired=pair is not None, opened=open_page
    )
    reported = find_reported(run, store)
    found, training = reported.run, reported.training
    summary = read_summary(found)
    if pair is not None:
        print_text(render_pair(summary, *pair), stdout_console())
    elif open_page:
        _open(render_html(summary, read_profiles(found), read_worst(found), training))
    elif format is None:
        if training is not None:
            print_training(training, stdout_console())
        print_table(summary, stdout_console())
    elif format == "llama":
        typer.echo(render_llama(summary, candidate, corpus), nl=False)
        for note in order_notes(summary, corpus):
            errors.print(note, style="dim", markup=False)
    elif format in FIGURE_FORMATS:
        _print_figure(summary, cast("FigureFormat", format), corpus)
    elif format == "html":
        # As bytes: the page says that it is UTF-8, whatever the terminal's encoding is.
        page = render_html(summary, read_profiles(found), read_worst(found), training)
        typer.echo(page.encode(), nl=False)
    elif format == "md":
        typer.echo(render_markdown(summary, training=training), nl=False)
    else:
        typer.echo(render(summary, format), nl=False)


def _refuse_contradictions(
    format: str | None,  # noqa: A002 - the option's name
    *,
    candidate: str | None,
    corpus: str | None,
    paired: bool,
    opened: bool,
) -> None:
    """Refuse options that say nothing about what is asked for."""
    from kldcloud.errors import UserError
    from kldcloud.report.html import FIGURE_FORMATS

    if candidate is not None and format != "llama":
        raise UserError(
            "--candidate chooses a block of --format llama",
            hint="leave it out, or add --format llama",
        )
    if corpus is not None and format not in {"llama", *FIGURE_FORMATS}:
        raise UserError(
            "--corpus chooses what --format llama, svg and png show",
            hint="leave it out, or add one of them",
        )
    if opened and format not in {None, "html"}:
        raise UserError("--open shows the page", hint="leave --format out, or say html")
    if paired and (format is not None or opened):
        raise UserError("--pair is text, and no part of a format", hint="leave one of them out")


def _print_figure(summary: Summary, format: FigureFormat, corpus: str | None) -> None:  # noqa: A002
    import sys

    from kldcloud.errors import UserError
    from kldcloud.report.html import render_figure

    if format == "png" and sys.stdout.isatty():
        raise UserError(
            "a PNG is no text for a terminal",
            hint="send it to a file: kldcloud report RUN --format png > plot.png",
        )
    typer.echo(render_figure(summary, format, corpus=corpus), nl=False)


def _open(page: str) -> None:
    """Leave the page where it stays after the command has ended, and have a browser show it."""
    import tempfile
    import webbrowser
    from pathlib import Path

    folder = Path(tempfile.mkdtemp(prefix="kldcloud-"))
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    typer.echo(path)
    if not webbrowser.open(path.as_uri()):
        from kldcloud.cli.terminal import errors

        errors.print("no browser was found: open that file with one", style="dim", markup=False)
