"""Another process that is at the same run: no harm to its bytes, but all the work done twice."""

from __future__ import annotations

import time
from typing import Final

from kldcloud.pipeline.life import PULSE_SECONDS, WORKING, read_driver
from kldcloud.pipeline.progress import Progress
from kldcloud.report.escaping import printable
from kldcloud.store.base import Store

_LATELY: Final = 3 * PULSE_SECONDS
_HOST_SHOWN: Final = 60


def warn_of_another_driver(store: Store, run: str, launch: str, progress: Progress) -> None:
    """Tell of a sweep's driver that gave a sign of life a moment ago and did not end.

    Args:
        store: where they meet.
        run: what both are at.
        launch: on other machines, that this driver belongs to; empty on this machine. An earlier
            driver of the same one was taken away, for there is one at a time.
        progress: told.
    """
    keys = [each.key for each in store.list(f"runs/{run}/life/")]
    drivers = [key for key in keys if key.endswith("/driver.json")]
    found = read_driver(store, drivers[-1]) if drivers else None
    if found is None or found.state not in WORKING or (launch and found.launch == launch):
        return
    warn_of_another(run, found.host, found.updated, progress)


def warn_of_another(run: str, host: str, seen: float, progress: Progress) -> None:
    """The warning, if the sign of life is a recent one.

    Args:
        run: what is being done twice.
        host: where the other is; empty if nobody knows.
        seen: Unix time in seconds of its sign of life.
        progress: told.
    """
    seconds = abs(time.time() - seen)
    if not seconds <= _LATELY:  # nor what is no number
        return
    where = f" on {printable(host, limit=_HOST_SHOWN)}" if host else ""
    progress.warn(
        f"another launch{where} was at {run} {seconds:.0f} s ago: unless it was killed, both do "
        "the same work now, and one of them is enough"
    )
