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
    from kldcloud.cli.qad_launch import show_qad_outcome
    from kldcloud.cli.terminal import TerminalProgress
    from kldcloud.clusters.node import run_node
    from kldcloud.pipeline.qad import QadOutcome

    outcome = run_node(folder, TerminalProgress())
    if isinstance(outcome, int):
        raise typer.Exit(outcome)
    if isinstance(outcome, QadOutcome):
        show_qad_outcome(outcome, as_json=False)
    else:
        show_outcome(outcome, as_json=False)
