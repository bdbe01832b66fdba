"""What a machine of a SkyPilot job runs: rank 0 drives the sweep, the others lend their workers."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from kldcloud.clusters.ray_nodes import RayNodes, join, place_from
from kldcloud.clusters.sealed import unseal
from kldcloud.errors import KldcloudError, UserError
from kldcloud.pipeline.launches import LaunchOrder, read_order
from kldcloud.pipeline.life import AttemptRecord, attempt_key, new_attempt, read_attempt
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.pulse import RecordPulse
from kldcloud.pipeline.sweep import Launched, SweepOutcome, run_sweep
from kldcloud.store import open_store
from kldcloud.store.base import Store

OUT_OF_TIME: Final = 124
"""Exit code of a launch whose time is used up, as of timeout(1)."""


def run_node(folder: Path, progress: Progress) -> SweepOutcome | int:
    """Do this machine's part of a launch.

    Args:
        folder: what travelled; see `launches.read_order`.
        progress: for the job's log.

    Returns:
        The outcome on the machine that drives; an exit code on the others.

    Raises:
        KldcloudError: one line that says what, where and the next step.
    """
    unseal(folder, os.environ)
    place = place_from(os.environ)
    if place.rank != 0:
        return join(place)
    order, job = read_order(folder)
    store = open_store(order.store)
    with _attempt(store, order) as (record, pulse), RayNodes(place) as machines:
        launched = Launched(
            launch=order.launch,
            attempt=record.attempt,
            sources=order.sources(store),
            allow_mixed=order.allow_mixed,
            on_run=lambda run: pulse.change(run=run, state="running", label=""),
        )
        return run_sweep(job, order.cluster, store, progress, machines, launched)


@contextlib.contextmanager
def _attempt(store: Store, order: LaunchOrder) -> Iterator[tuple[AttemptRecord, RecordPulse[Any]]]:
    """One attempt's record in the store, and a watchdog over the time of all attempts."""
    left = order.seconds - _seconds_used(store, order.launch)
    if left <= 0:
        raise UserError(
            f"launch {order.launch} has used up its {order.seconds:.0f} s of machines",
            hint="raise max_duration in the cluster file, or --max-cost, and launch again",
        )
    attempt = new_attempt()
    first = AttemptRecord(attempt, started=time.time(), state="preparing")
    with RecordPulse(store, attempt_key(order.launch, attempt), first) as pulse:
        watchdog = threading.Timer(left, _out_of_time, (pulse, order))
        watchdog.daemon = True
        watchdog.start()
        try:
            yield first, pulse
        except KldcloudError as error:
            pulse.change(state="failed", error=str(error))
            raise
        except BaseException as error:
            pulse.change(state="stopped", error=type(error).__name__)
            raise
        else:
            pulse.change(state="finished")
        finally:
            watchdog.cancel()


def _seconds_used(store: Store, launch: str) -> float:
    """Of machines, by earlier attempts, as far as their heartbeats tell."""
    used = 0.0
    for info in store.list(f"launches/{launch}/attempts/"):
        record = read_attempt(store, info.key)
        if record is not None:
            used += max(0.0, record.updated - record.started)
    return used


def _out_of_time(pulse: RecordPulse[Any], order: LaunchOrder) -> None:
    """End the process: what is committed stays, and the machines go with the job."""
    sys.stderr.write(
        f"kldcloud: the {order.seconds:.0f} s of this launch are over; "
        "raise max_duration or --max-cost, and launch again to go on\n"
    )
    sys.stderr.flush()
    pulse.change(state="out-of-time", error="out of time")
    with contextlib.suppress(Exception):
        pulse.end()
    os._exit(OUT_OF_TIME)
