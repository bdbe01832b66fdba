"""Writing heartbeats while something else works."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Generic, Self, TypeVar

from kldcloud.errors import KldcloudError
from kldcloud.pipeline.life import (
    PULSE_SECONDS,
    AttemptRecord,
    DriverLife,
    WorkerLife,
    driver_key,
)
from kldcloud.store.base import Store

Record = TypeVar("Record", bound="DriverLife | AttemptRecord")


class Pulse:
    """A thread that writes one process's heartbeat, at once when it changes state and else slowly.

    A store that fails here costs a heartbeat, never the run.

    Args:
        write: writes the present record.
    """

    def __init__(self, write: Callable[[], None], seconds: float = PULSE_SECONDS) -> None:
        self._write = write
        self._seconds = seconds
        self._wake = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._thread.start()

    def now(self) -> None:
        """Write soon instead of at the next beat."""
        self._wake.set()

    def end(self) -> None:
        """Write once more and stop."""
        self._ending = True
        self._wake.set()
        self._thread.join(timeout=30)

    def _beat(self) -> None:
        while True:
            ending = self._ending  # asked before the write: what changed just now is in it
            with contextlib.suppress(KldcloudError, OSError):
                self._write()
            if ending:
                return
            self._wake.wait(self._seconds)
            self._wake.clear()


class RecordPulse(Generic[Record]):
    """The heartbeat of something with a record that is kept up to date.

    Args:
        store: where it goes.
        key: the object's.
        first: what is known at the start.
    """

    def __init__(self, store: Store, key: str, first: Record) -> None:
        self._lock = threading.Lock()
        self._record: Record = replace(first, host=socket.gethostname(), started=time.time())
        self._store = store
        self._key = key
        self._pulse = Pulse(self._write)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.end()

    def change(self, **facts: Any) -> None:  # noqa: ANN401 - the record's fields
        """Put new facts into the record and write it soon."""
        with self._lock:
            self._record = replace(self._record, **facts)
        self._pulse.now()

    def end(self) -> None:
        """Write once more and stop."""
        self._pulse.end()

    def _write(self) -> None:
        with self._lock:
            record = replace(self._record, updated=time.time())
        self._store.write(self._key, json.dumps(asdict(record)).encode())


class DriverPulse(RecordPulse[DriverLife]):
    """The driver's heartbeat, which says how its block ended."""

    def __init__(self, store: Store, run: str, first: DriverLife) -> None:
        super().__init__(store, driver_key(run, first.attempt), first)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.change(state="finished", label="")
        elif isinstance(error, KldcloudError):
            self.change(state="failed", error=str(error))
        else:
            self.change(state="stopped", error=type(error).__name__)
        self.end()

    def advance(self, chunks: int) -> None:
        """Count chunk evaluations as committed."""
        with self._lock:
            self._record = replace(self._record, done=self._record.done + chunks)


class WorkerPulse:
    """A worker's heartbeat.

    The thread goes on while a task hangs: `moved` then stands still while `updated` does not,
    which is how a hung worker differs from a dead one, and a slow one from both.
    """

    def __init__(self, store: Store, key: str, worker: int, seconds: float = PULSE_SECONDS) -> None:
        self._store = store
        self._key = key
        self._life = WorkerLife(
            worker, host=socket.gethostname(), pid=os.getpid(), moved=time.time()
        )
        self._pulse = Pulse(self._write, seconds)

    def begin(self, task: str) -> None:
        """A task begins."""
        now = time.time()
        self._life = replace(self._life, task=task, since=now, moved=now, chunks=0)

    def step(self) -> None:
        """A chunk of it is done."""
        self._life = replace(self._life, moved=time.time(), chunks=self._life.chunks + 1)

    def moved(self) -> None:
        """Something other than a chunk went on: a part of a download, a model loaded."""
        self._life = replace(self._life, moved=time.time())

    def rest(self) -> None:
        """The task is over."""
        self._life = replace(self._life, task="", moved=time.time(), chunks=0)

    def _write(self) -> None:
        life = replace(self._life, updated=time.time())
        self._store.write(self._key, json.dumps(asdict(life)).encode())
