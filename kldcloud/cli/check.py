"""`kldcloud check`: does everything that a launch needs work here?"""

from __future__ import annotations

from typing import Annotated

import typer


def check(
    store: Annotated[str, typer.Option(help="The store to try out.")] = "./kldcloud-store",
    cluster: Annotated[str, typer.Option(help="The cluster to look at.")] = "local",
) -> None:
    """Try the engine, the store (with its conditional writes) and the cluster; say what to mend."""
    from kldcloud.pipeline.check import check_all

    failed = 0
    for finding in check_all(store, cluster):
        typer.echo(f"{'ok  ' if finding.ok else 'FAIL'} {finding.subject}: {finding.text}")
        failed += not finding.ok
    if failed:
        from kldcloud.errors import UserError

        raise UserError(f"{failed} of the checks failed", hint="each line above says what to do")
