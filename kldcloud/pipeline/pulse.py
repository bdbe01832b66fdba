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
from typing import Any, Self

from kldcloud.errors import KldcloudError
from kldcloud.pipeline.life import PULSE_SECONDS, DriverLife, WorkerLife, driver_key
from kldcloud.store.base import Store


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
            with contextlib.suppress(KldcloudError, OSError):
                self._write()
            if self._ending:
                return
            self._wake.wait(self._seconds)
            self._wake.clear()


class DriverPulse:
    """The driver's heartbeat: a record that the pipeline keeps up to date.

    Args:
        store: where it goes.
        run: the run's id.
        first: what is known at the start.
    """

    def __init__(self, store: Store, run: str, first: DriverLife) -> None:
        self._lock = threading.Lock()
        self._life = replace(first, host=socket.gethostname(), started=time.time())
        self._store = store
        self._key = driver_key(run, first.attempt)
        self._pulse = Pulse(self._write)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if error is None:
            self.change(state="finished", label="")
        elif isinstance(error, KldcloudError):
            self.change(state="failed", error=str(error))
        else:
            self.change(state="stopped", error=type(error).__name__)
        self._pulse.end()

    def change(self, **facts: Any) -> None:  # noqa: ANN401 - the fields of DriverLife
        """Put new facts into the record and write it soon."""
        with self._lock:
            self._life = replace(self._life, **facts)
        self._pulse.now()

    def advance(self, chunks: int) -> None:
        """Count chunk evaluations as committed."""
        with self._lock:
            self._life = replace(self._life, done=self._life.done + chunks)

    def _write(self) -> None:
        with self._lock:
            life = replace(self._life, updated=time.time())
        self._store.write(self._key, json.dumps(asdict(life)).encode())


class WorkerPulse:
    """A worker's heartbeat.

    The thread goes on while a task hangs: `moved` then stands still while `updated` does not,
    which is how a hung worker differs from a dead one, and a slow one from both.
    """

    def __init__(self, store: Store, key: str, worker: int) -> None:
        self._store = store
        self._key = key
        self._life = WorkerLife(
            worker, host=socket.gethostname(), pid=os.getpid(), moved=time.time()
        )
        self._pulse = Pulse(self._write)

    def begin(self, task: str) -> None:
        """A task begins."""
        now = time.time()
        self._life = replace(self._life, task=task, since=now, moved=now, chunks=0)

    def step(self) -> None:
        """A chunk of it is done."""
        self._life = replace(self._life, moved=time.time(), chunks=self._life.chunks + 1)

    def rest(self) -> None:
        """The task is over."""
        self._life = replace(self._life, task="", moved=time.time(), chunks=0)

    def _write(self) -> None:
        life = replace(self._life, updated=time.time())
        self._store.write(self._key, json.dumps(asdict(life)).encode())
