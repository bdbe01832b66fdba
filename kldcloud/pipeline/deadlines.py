"""Telling a worker that hangs from one that is slow, by the heartbeats that both leave."""

from __future__ import annotations

import time
from dataclasses import dataclass

from kldcloud.pipeline.life import PULSE_SECONDS, WorkerLife, read_worker, worker_key
from kldcloud.store.base import Store


@dataclass(slots=True)
class _Seen:
    life: WorkerLife
    first_at: float
    asked_at: float


class ShardDeadlines:
    """Reads a worker's heartbeat once it has held a shard for longer than the deadline.

    Only differences of one clock are compared: of the worker's own, between its heartbeat and its
    last step, and of the driver's, since a heartbeat last changed.

    Args:
        store: where the heartbeats are.
        run: the run's id.
        attempt: the driver's.
        seconds: without a step forward before a worker counts as hung.
    """

    def __init__(self, store: Store, run: str, attempt: str, seconds: float) -> None:
        self._store = store
        self._run = run
        self._attempt = attempt
        self._seconds = seconds
        self._seen: dict[int, _Seen] = {}

    def is_stuck(self, worker: int, task: str, held: float) -> str | None:
        """Why the worker is taken to hang; None while it may just be slow.

        Args:
            worker: its number.
            task: key of the object that it should be making.
            held: seconds since it began, as far as the driver knows.
        """
        if held <= self._seconds:
            return None
        now = time.monotonic()
        seen = self._seen.get(worker)
        if seen is not None and now - seen.asked_at < PULSE_SECONDS / 2:
            return None
        life = read_worker(self._store, worker_key(self._run, self._attempt, worker))
        if life is None:
            return None  # the store does not answer: that says nothing about the worker
        if seen is None or seen.life.pid != life.pid or seen.life.updated != life.updated:
            self._seen[worker] = _Seen(life, now, now)
        else:
            seen.asked_at = now
            quiet = now - seen.first_at
            if quiet > max(self._seconds, 3 * PULSE_SECONDS):
                return f"worker {worker} on {life.host} gave no sign of life for {quiet:.0f} s"
        still = life.updated - life.moved
        if life.task == task and still > self._seconds:
            return f"worker {worker} on {life.host} made no step for {still:.0f} s"
        return None
