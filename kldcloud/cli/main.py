"""`kldcloud`: the command's entry, and the one place where errors become exit codes."""

from __future__ import annotations

import sys

import typer

from kldcloud import __version__
from kldcloud.cli import check, kld, launch, plan, report
from kldcloud.errors import KldcloudError

INTERRUPTED = 130

app = typer.Typer(
    name="kldcloud",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="KL divergence between a language model and its quantised candidates over a whole corpus.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kldcloud {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and end."
    ),
) -> None:
    del version


app.command()(launch.launch)
app.command()(plan.plan)
app.command()(report.report)
app.command(name="import-kld")(kld.import_kld)
app.command(name="export-kld")(kld.export_kld)
app.command()(check.check)


def main() -> None:
    """Run the command line; never ends in a traceback for anything foreseen."""
    try:
        app()
    except KldcloudError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _complain("stopped; the same command goes on from here")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of stdout has seen enough; Python must not complain again at exit.
        sys.stdout = None
        sys.exit(0)


def _complain(text: str) -> None:
    sys.stderr.write("kldcloud: " + " ".join(text.split()) + "\n")


if __name__ == "__main__":
    main()
