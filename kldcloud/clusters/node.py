"""What a machine of a SkyPilot job runs: rank 0 drives the job, the others lend their workers."""

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
from kldcloud.errors import KldcloudError, PartialFailureError
from kldcloud.pipeline.launches import LaunchOrder, read_order
from kldcloud.pipeline.life import AttemptRecord, attempt_key, new_attempt, read_attempt
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.pulse import RecordPulse
from kldcloud.pipeline.qad import QadOutcome, run_qad
from kldcloud.pipeline.sweep import Launched, SweepOutcome, run_sweep
from kldcloud.spec.qad_job import QadJob
from kldcloud.store import open_store
from kldcloud.store.base import Store

OUT_OF_TIME: Final = 124
"""Exit code of a launch whose time is used up, as of timeout(1)."""
MORE_TIME: Final = (
    "raise max_duration in the cluster file, or --max-cost, and launch again to go on"
)
TRY_AGAIN: Final = "the same command tries just these again"
_LONGEST_ERROR: Final = 4000


def run_node(folder: Path, progress: Progress) -> SweepOutcome | QadOutcome | int:
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
        count = len(place.addresses)
        progress.note(f"attempt {record.attempt} on {count} machine{'s' if count > 1 else ''}")
        launched = Launched(
            launch=order.launch,
            attempt=record.attempt,
            sources=order.sources(store),
            allow_mixed=order.allow_mixed,
            on_run=lambda run: pulse.change(run=run, state="running", label=""),
        )
        outcome: SweepOutcome | QadOutcome
        if isinstance(job, QadJob):
            outcome = run_qad(job, order.cluster, store, progress, machines, launched)
            failed = outcome.failed
        else:
            outcome = run_sweep(job, order.cluster, store, progress, machines, launched)
            failed = partial_failure(outcome)
        if failed is not None:
            pulse.change(error=failed.message[:_LONGEST_ERROR], exit_code=failed.exit_code)
        return outcome


def partial_failure(outcome: SweepOutcome) -> PartialFailureError | None:
    """Which candidates of a run failed, and why; None if all are there."""
    if not outcome.failures:
        return None
    failed = "; ".join(
        f"{failure.group} failed at {failure.key}: {failure.cause}"
        for failure in outcome.failures.values()
    )
    return PartialFailureError(failed, hint=TRY_AGAIN)


def seconds_used(store: Store, launch: str) -> float:
    """Of machines, by earlier attempts, as far as their heartbeats tell."""
    used = 0.0
    for info in store.list(f"launches/{launch}/attempts/"):
        record = read_attempt(store, info.key)
        if record is not None:
            used += max(0.0, record.updated - record.started)
    return used


@contextlib.contextmanager
def _attempt(store: Store, order: LaunchOrder) -> Iterator[tuple[AttemptRecord, RecordPulse[Any]]]:
    """One attempt's record in the store, and a watchdog over the time of all attempts."""
    left = order.seconds - seconds_used(store, order.launch)
    attempt = new_attempt()
    first = AttemptRecord(attempt, started=time.time(), state="preparing")
    with RecordPulse(store, attempt_key(order.launch, attempt), first) as pulse:
        if left <= 0:
            _out_of_time(pulse, order)
        watchdog = threading.Timer(left, _out_of_time, (pulse, order))
        watchdog.daemon = True
        watchdog.start()
        try:
            yield first, pulse
        except KldcloudError as error:
            text = str(error)[:_LONGEST_ERROR]
            pulse.change(state="failed", error=text, exit_code=error.exit_code)
            raise
        except BaseException as error:
            pulse.change(state="stopped", error=type(error).__name__, exit_code=1)
            raise
        else:
            pulse.change(state="finished")
        finally:
            watchdog.cancel()


def _out_of_time(pulse: RecordPulse[Any], order: LaunchOrder) -> None:
    """End the process: what is committed stays, and the machines go with the job."""
    sys.stderr.write(f"kldcloud: the {order.seconds:.0f} s of this launch are over; {MORE_TIME}\n")
    sys.stderr.flush()
    pulse.change(state="out-of-time", error="out of time", exit_code=OUT_OF_TIME)
    with contextlib.suppress(Exception):
        pulse.end()
    os._exit(OUT_OF_TIME)
