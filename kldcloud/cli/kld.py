"""`kldcloud import-kld` and `export-kld`: base distributions to and from llama.cpp's file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kldcloud.cli.report import RunName, RunStore


def import_kld(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A .kld: a path, s3:// or hf:.")],
    store: Annotated[str, typer.Option(help="The store to stage it in.")] = "./kldcloud-store",
) -> None:
    """Stage a base file that llama-perplexity wrote; jobs name it as `base: {logits: FILE}`."""
    from kldcloud.cli.terminal import TerminalProgress
    from kldcloud.pipeline.exchange import import_base_file
    from kldcloud.store import open_store

    stage = import_base_file(file, open_store(store), TerminalProgress())
    typer.echo(
        f"stage {stage.key}: {stage.chunks} chunks of {stage.context} tokens, "
        f"vocabulary {stage.vocabulary:,}"
    )


def export_kld(
    run: RunName,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .kld file to write.")],
    store: RunStore = None,
    corpus: Annotated[
        str | None, typer.Option(help="Which corpus, if the run has several.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace an existing file.")] = False,
) -> None:
    """Write a run's base distribution as a file that llama-perplexity reads."""
    from kldcloud.cli.terminal import TerminalProgress
    from kldcloud.pipeline.exchange import export_base_file
    from kldcloud.pipeline.runs import find_run
    from kldcloud.staging.kld_file import refuse_target

    refuse_target(output, overwrite=force)
    export_base_file(
        find_run(run, store), output, corpus=corpus, overwrite=force, progress=TerminalProgress()
    )
    typer.echo(f"{output}: {output.stat().st_size:,} bytes")
