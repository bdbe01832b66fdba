"""Signs of life that a run leaves in its store: never results, never part of a summary.

    runs/<run>/life/<attempt>/driver.json        how far the driver is, written every few seconds
    runs/<run>/life/<attempt>/worker-0003.json   what one worker is doing, and when it last moved
    runs/<run>/life/<attempt>/ended.json         wall clock, hosts and use of processors at the end
    launches/<launch>/machine.json               what was rented, and for how much
    launches/<launch>/attempts/<attempt>.json    each time that the machines ran it

An attempt is one driver process. A driver that was taken away and goes on writing for a while
writes under its own attempt, so it cannot pass for its successor.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Final, TypeVar

from kldcloud.errors import KldcloudError
from kldcloud.store.base import Store

PULSE_SECONDS = 10.0
"""Between two heartbeats of a process: how old a status may be, how often a store is written."""
MAX_LIFE_BYTES = 64 << 10
WORKING: Final = ("staging", "measuring", "reducing")
"""States of a driver that is at work; the others are ends."""

Record = TypeVar("Record", bound="DriverLife | WorkerLife | LaunchRecord | AttemptRecord")


@dataclass(frozen=True, slots=True)
class DriverLife:
    """How far a driver is.

    Attributes:
        attempt: which driver process.
        launch: the launch on other machines that it belongs to; empty on this machine.
        host: where it runs.
        started: Unix time in seconds.
        updated: Unix time in seconds of this heartbeat.
        state: staging, measuring, reducing, finished, failed or stopped.
        label: the piece of work under way, for a person.
        since: Unix time in seconds when that piece began.
        done: of that piece, chunk evaluations that are committed, earlier attempts' too.
        total: of that piece, chunk evaluations in all.
        done_at_start: of `done`, those that were there when this attempt came to it.
        context: tokens in a chunk evaluation, on average.
        workers: processes that hold models.
        failures: what was given up, one line each.
        error: why it stopped, in one line.
    """

    attempt: str
    launch: str = ""
    host: str = ""
    started: float = 0.0
    updated: float = 0.0
    state: str = "staging"
    label: str = ""
    since: float = 0.0
    done: int = 0
    total: int = 0
    done_at_start: int = 0
    context: float = 0.0
    workers: int = 0
    failures: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class WorkerLife:
    """What a worker is doing.

    Attributes:
        worker: its number.
        host: where it runs.
        pid: its process.
        updated: Unix time in seconds of this heartbeat: the process lives.
        moved: Unix time in seconds of its last step: a chunk done, a model loaded, a task begun.
        task: key of the object that it works on; empty while it waits.
        since: Unix time in seconds when it began that task.
        chunks: of that task, done.
    """

    worker: int
    host: str = ""
    pid: int = 0
    updated: float = 0.0
    moved: float = 0.0
    task: str = ""
    since: float = 0.0
    chunks: int = 0


@dataclass(frozen=True, slots=True)
class LaunchRecord:
    """A launch on other machines: `launches/<launch>/machine.json`.

    Attributes:
        launch: its id, and what SkyPilot calls its cluster or managed job.
        cluster: name of the cluster file.
        managed: whether a managed job (spot, recovered) or a plain cluster runs it.
        nodes: machines.
        machine: in words: cloud, instance, accelerators, spot or not.
        hourly: US dollars an hour of all machines; 0 for machines of one's own.
        launched: Unix time in seconds.
        max_duration: seconds.
        down: Unix time in seconds when the machines were given back; 0 if nobody has.
        job: digest of the job, to find its launch by; see `launches.job_digest`.
        wheel: digest of the kldcloud that was shipped.
        before: the attempt that was the latest when it was launched; empty if there was none.
    """

    launch: str
    cluster: str = ""
    managed: bool = False
    nodes: int = 1
    machine: str = ""
    hourly: float = 0.0
    launched: float = 0.0
    max_duration: float = 0.0
    down: float = 0.0
    job: str = ""
    wheel: str = ""
    before: str = ""


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One time that the machines ran a launch: `launches/<launch>/attempts/<attempt>.json`.

    Attributes:
        attempt: the driver's.
        run: the run's id once it is known; empty before.
        host: of the driver.
        started: Unix time in seconds.
        updated: Unix time in seconds of this heartbeat.
        state: preparing, running, finished, failed, out-of-time or stopped.
        label: what is being prepared, for a person.
        error: why it ended, in one line; of one that finished, which candidates failed.
        exit_code: of the driver, once it has ended.
    """

    attempt: str
    run: str = ""
    host: str = ""
    started: float = 0.0
    updated: float = 0.0
    state: str = "preparing"
    label: str = ""
    error: str = ""
    exit_code: int = 0


def launch_key(launch: str) -> str:
    return f"launches/{launch}/machine.json"


def attempt_key(launch: str, attempt: str) -> str:
    return f"launches/{launch}/attempts/{attempt}.json"


def read_launch(store: Store, key: str) -> LaunchRecord | None:
    """A launch on other machines; None if the object is not one."""
    return _read(store, key, LaunchRecord)


def read_attempt(store: Store, key: str) -> AttemptRecord | None:
    """An attempt of a launch; None if the object is not one."""
    return _read(store, key, AttemptRecord)


def driver_key(run: str, attempt: str) -> str:
    return f"runs/{run}/life/{attempt}/driver.json"


def worker_key(run: str, attempt: str, worker: int) -> str:
    return f"runs/{run}/life/{attempt}/worker-{worker:04d}.json"


def new_attempt() -> str:
    """An id for a driver process; later ones sort after earlier ones."""
    return f"{time.time_ns() // 1_000_000:013d}-{secrets.token_hex(3)}"


def read_driver(store: Store, key: str) -> DriverLife | None:
    """A driver's heartbeat; None if it is not one."""
    return _read(store, key, DriverLife)


def read_worker(store: Store, key: str) -> WorkerLife | None:
    """A worker's heartbeat; None if it is not one."""
    return _read(store, key, WorkerLife)


def _read(store: Store, key: str, kind: type[Record]) -> Record | None:
    """Whoever can write to the store may write nonsense here: it is passed over."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(store.read(key, limit=MAX_LIFE_BYTES))
    except (KldcloudError, ValidationError):
        return None
