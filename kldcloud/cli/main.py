"""`kldcloud`: the command's entry, and the one place where errors become exit codes."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import Any

import typer

from kldcloud import __version__
from kldcloud.cli import check, compare, kld, launch, machines, node, plan, report, status
from kldcloud.errors import KldcloudError, UserError

INTERRUPTED = 130
USAGE = 2
_PASSWORD = re.compile(r"(?<=:)/{1,2}[^\s/@]*:\S*@")
"""The part of an address that is never repeated, even as a path that lost one of its slashes."""

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
app.command()(compare.compare)
app.command()(status.status)
app.command()(status.runs)
app.command()(machines.logs)
app.command()(machines.cancel)
app.command()(machines.down)
app.command(hidden=True)(node.node)
app.command(name="import-kld")(kld.import_kld)
app.command(name="export-kld")(kld.export_kld)
app.command()(check.check)


# Where typer keeps click's class differs between its versions; its public subclass does not.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def main() -> None:
    """Run the command line; never ends in a traceback for anything foreseen."""
    try:
        _refuse_what_is_no_text()
        # Left to itself, typer swallows Ctrl-C without a word and draws boxes round its errors.
        code = app(prog_name="kldcloud", standalone_mode=False)
    except KldcloudError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except _UsageError as error:
        sys.exit(_explain_usage(error))
    except OSError as error:
        # The machine's doing: a full disk under a library's own cache, an output that is closed.
        where = f"{error.filename}: " if error.filename else ""
        why = str(error.strerror or error).rstrip(".")
        _complain(f"{where}{why}; run the same command again once it is mended")
        sys.exit(1)
    if code == INTERRUPTED:
        _complain("stopped; the same command goes on from here")
    sys.exit(code)


def _refuse_what_is_no_text() -> None:
    """Refuse arguments, and a folder, that Ray, YAML and a store's keys could not spell.

    Raises:
        UserError: bytes that the locale has no letters for; which, and what to set.
    """
    words = [("", each) for each in sys.argv[1:]]
    with contextlib.suppress(OSError):
        words.append(("the current folder ", str(Path.cwd())))
    for what, word in words:
        if word.isascii() or not re.search("[\ud800-\udfff]", word):
            continue
        shown = f"{what}{os.fsencode(word).decode('utf-8', 'backslashreplace')!r}"
        if (known := sys.getfilesystemencoding()) == "utf-8":
            raise UserError(f"{shown} is no UTF-8", hint="rename it")
        raise UserError(
            f"{shown} has letters that the locale's {known} lacks", hint="export LC_ALL=C.UTF-8"
        )


def _explain_usage(error: Any) -> int:  # noqa: ANN401 - click's class, wherever it is
    """One line for an unknown option or a missing argument; the help where nothing was asked."""
    message = str(error.format_message()).rstrip(".")
    command = error.ctx.command_path if error.ctx is not None else app.info.name
    if message:
        _complain(f"{message}; see {command} --help")
    else:
        error.show()
    return USAGE


def _complain(text: str) -> None:
    # File names and a library's own words can hold anything: they must not steer a terminal.
    line = _PASSWORD.sub("//***@", " ".join(text.split()))
    if not line.isprintable():
        from kldcloud.report.escaping import printable

        line = printable(line)
    sys.stderr.write(f"kldcloud: {line}\n")


if __name__ == "__main__":
    main()
