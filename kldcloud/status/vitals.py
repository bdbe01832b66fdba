"""Reading signs of life: is it running, how fast, and which worker hangs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Final, TypeVar

from kldcloud.pipeline.life import (
    WORKING,
    AttemptRecord,
    DriverLife,
    LaunchRecord,
    WorkerLife,
)

SILENT_SECONDS: Final = 180.0
"""A driver that wrote nothing for so long is taken for gone: 18 heartbeats."""
WORKER_SILENT_SECONDS: Final = 60.0
"""The same of a worker, whose absence its driver notices by itself."""
STUCK_SECONDS: Final = 300.0
"""No worker is called stuck before."""
STUCK_STEPS: Final = 10.0
"""Nor before it has taken so many times as long as a chunk takes."""
UNKNOWN_PACE_SECONDS: Final = 1800.0
"""Nor before this, while nobody knows how long that is: a large model may be loading."""
YOUNG_SECONDS: Final = 5.0
"""Before this, a rate would say more about starting than about working."""
ENDED: Final = ("finished", "failed", "out-of-time", "stopped")
_MOST: Final = 2.0**53

Record = TypeVar("Record", DriverLife, WorkerLife, LaunchRecord, AttemptRecord)


@dataclass(frozen=True, slots=True)
class WorkerFinding:
    """A worker that a person should look at.

    Attributes:
        seconds: since it did anything (if it is stuck) or since its last heartbeat (if silent).
    """

    worker: int
    host: str
    task: str
    seconds: float


@dataclass(frozen=True, slots=True)
class WorkersStatus:
    """The workers of the driver at work.

    Attributes:
        count: as the driver says.
        alive: have written a heartbeat lately.
        stuck: of these, those that hold a task and do not get on with it.
        silent: have written heartbeats, but not lately.
    """

    count: int
    alive: int
    stuck: tuple[WorkerFinding, ...]
    silent: tuple[WorkerFinding, ...]


def plausible(record: Record | None) -> Record | None:
    """The record if all its numbers can be meant: whoever can write to a store could write any."""
    if record is None:
        return None
    values = (getattr(record, each.name) for each in fields(record))
    numbers = (value for value in values if isinstance(value, int | float))
    return record if all(0 <= number <= _MOST for number in numbers) else None


def age(updated: float, now: float) -> float:
    """Seconds since a heartbeat; 0 for one that a clock ahead of ours has dated."""
    return max(0.0, now - updated)


def is_working(driver: DriverLife | None, now: float) -> bool:
    return (
        driver is not None and driver.state in WORKING and age(driver.updated, now) < SILENT_SECONDS
    )


def is_preparing(attempt: AttemptRecord | None, now: float) -> bool:
    """Whether the machines are getting ready, or have begun without a word from the driver yet."""
    return (
        attempt is not None
        and attempt.state in ("preparing", "running")
        and age(attempt.updated, now) < SILENT_SECONDS
    )


def judge(
    driver: DriverLife | None, attempt: AttemptRecord | None, *, finished: bool, now: float
) -> str:
    """The state of a run, or of a launch that has none yet.

    Args:
        driver: the newest heartbeat.
        attempt: the machines' newest, where they were rented.
        finished: whether the run's summary is there.
        now: Unix time in seconds.

    Returns:
        finished, running, preparing, failed, stopped, out-of-time, or gone: nobody said that it
        ended, and nobody works on it.
    """
    if finished:
        return "finished"
    if is_working(driver, now):
        return "running"
    if attempt is not None and driver is not None and attempt.attempt < driver.attempt:
        attempt = None
    newer = attempt is not None and (driver is None or attempt.attempt > driver.attempt)
    if newer and attempt is not None and is_preparing(attempt, now):
        return attempt.state
    ended = driver.state if driver is not None and driver.state in ENDED and not newer else ""
    # The machines know that the time was up; the driver only that it was told to stop.
    if (
        attempt is not None
        and attempt.state in ENDED
        and (not ended or attempt.state == "out-of-time")
    ):
        ended = attempt.state
    if ended == "finished":
        # The driver came to its end and the run did not: some candidates failed.
        return "failed" if driver is not None and driver.failures else "stopped"
    return ended or "gone"


def chunks_a_second(driver: DriverLife) -> float | None:
    """Chunk evaluations a second of this piece of work; None while that would be a guess."""
    # Drivers that do not say when a piece of work began have begun it with their attempt.
    seconds = driver.updated - (driver.since or driver.started)
    done = driver.done - driver.done_at_start
    return done / seconds if seconds >= YOUNG_SECONDS and done > 0 else None


def judge_workers(driver: DriverLife, workers: Iterable[WorkerLife], now: float) -> WorkersStatus:
    """Tell workers that hang from those that are slow, idle or dead."""
    rate = chunks_a_second(driver)
    pace = max(driver.workers, 1) / rate if rate else None
    alive, stuck, silent = 0, [], []
    for life in sorted(workers, key=lambda each: each.worker):
        quiet = age(life.updated, now)
        if quiet >= WORKER_SILENT_SECONDS:
            silent.append(WorkerFinding(life.worker, life.host, life.task, quiet))
            continue
        alive += 1
        # Both times are of the worker's own clock, so no other clock can make it look stuck.
        still = life.updated - life.moved
        if life.task and still > _patience(life, pace):
            stuck.append(WorkerFinding(life.worker, life.host, life.task, still))
    return WorkersStatus(driver.workers, alive, tuple(stuck), tuple(silent))


def _patience(life: WorkerLife, pace: float | None) -> float:
    """How long a worker may stand still, from the pace of all and from its own in this task."""
    own = (life.moved - life.since) / life.chunks if life.chunks else None
    known = [each for each in (own, pace) if each is not None and math.isfinite(each)]
    if not known:
        return UNKNOWN_PACE_SECONDS
    return max(STUCK_SECONDS, STUCK_STEPS * max(known))
