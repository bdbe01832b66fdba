"""`kldcloud node`: what the machines of a launch run; not for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def node(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What a launch sent along.")],
) -> None:
    """Do this machine's part of a launch on SkyPilot."""
    from kldcloud.cli.launch import show_outcome
    from kldcloud.cli.terminal import TerminalProgress
    from kldcloud.clusters.node import run_node

    outcome = run_node(folder, TerminalProgress())
    if isinstance(outcome, int):
        raise typer.Exit(outcome)
    show_outcome(outcome, as_json=False)
