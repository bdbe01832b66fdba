"""A worker whose shards take a fixed time: it sleeps, commits, replies.

Its cost is time and not work, so that 64 of them fit on two cores. All else is the pipeline's own:
settings, tasks, heartbeats, store and replies, in the order in which `SweepWorker` uses them.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kldcloud.clusters.ray_actors import RayActors
from kldcloud.corpus.chunks import Shard
from kldcloud.errors import KldcloudError, StoreError
from kldcloud.models.llama_engine import LlamaOptions
from kldcloud.pipeline.life import worker_key
from kldcloud.pipeline.machines import Seat, WorkerSettings
from kldcloud.pipeline.pulse import WorkerPulse
from kldcloud.pipeline.tasks import EngineRef, MeasureTask, ModelRef, Reply, Task
from kldcloud.store import open_store

OBJECT_BYTES = 64 << 10
"""What a shard commits: the partial of a few chunks has about as many."""
FAILS_ONCE = "-fails-once"
"""End of the keys whose first commit fails."""
_ENGINE = EngineRef(ModelRef(Path("none.gguf"), "0" * 64, 1), 512, LlamaOptions())


@dataclass(frozen=True, slots=True)
class SyntheticSettings(WorkerSettings):
    """What the workers are told.

    Attributes:
        seconds: that each shard takes.
    """

    seconds: float


class SyntheticWorker:
    """Sleeps for a shard's cost, then commits it and replies."""

    def __init__(self, settings: SyntheticSettings, seat: Seat, number: int) -> None:
        del seat
        self._store = open_store(settings.store)
        self._seconds = settings.seconds
        self._data = os.urandom(OBJECT_BYTES)
        self._pulse = WorkerPulse(
            self._store, worker_key(settings.run, settings.attempt, number), number
        )
        self._group = ""
        self._commits = self._gaps = self._ended = 0.0
        born = start_key(settings.run, number, os.getpid())
        self._store.write_new(born, repr(time.time()).encode())

    def ping(self) -> int:
        return os.getpid()

    def usage(self) -> dict[str, float]:
        """Of the latest group: seconds in commits, and between a reply and the next task."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
        return {"commit_seconds": self._commits, "gap_seconds": self._gaps, "peak_bytes": peak}

    def run(self, task: Task) -> Reply:
        if task.group == self._group:
            self._gaps += time.perf_counter() - self._ended
        else:
            self._group, self._commits, self._gaps = task.group, 0.0, 0.0
        self._pulse.begin(task.key)
        try:
            time.sleep(self._seconds)
            began = time.perf_counter()
            self._commit(task)
            self._commits += time.perf_counter() - began
        except KldcloudError as error:
            return Reply(task.key, error)
        finally:
            self._pulse.rest()
            self._ended = time.perf_counter()
        return Reply(task.key)

    def _commit(self, task: Task) -> None:
        tried = task.key.replace("/partials/", "/tried/")
        if task.key.endswith(FAILS_ONCE) and self._store.write_new(tried, b""):
            raise StoreError("the store was away")
        self._store.write_new(task.key, self._data)


class SyntheticActors(RayActors):
    """The pipeline's own Ray actors, of the class above; counts what they are given."""

    def __init__(self, count: int, settings: SyntheticSettings) -> None:
        import ray

        # Workers can import kldcloud, but not this folder: the class must travel to them whole.
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        super().__init__([Seat("", 1, None)] * count, settings, SyntheticWorker)
        self.submitted = 0

    @property
    def handles(self) -> Sequence[Any]:
        """Ray's own, for `ActorPool`."""
        return self._actors

    def submit(self, worker: int, task: Task) -> Any:  # noqa: ANN401 - Ray's reference
        self.submitted += 1
        return super().submit(worker, task)


def start_key(run: str, worker: int, pid: int) -> str:
    """The object that says when a worker's process was ready, in Unix seconds."""
    return f"runs/{run}/starts/{worker:04d}-{pid}"


def make_tasks(run: str, group: str, count: int, failing_every: int = 0) -> list[Task]:
    """So many shards; each `failing_every`-th fails once."""
    tasks: list[Task] = []
    for at in range(count):
        fails = failing_every and at % failing_every == failing_every // 2
        key = f"runs/{run}/partials/{group}/{at:06d}{FAILS_ONCE if fails else ''}"
        shard = Shard(at, 1)
        tasks.append(
            MeasureTask(
                group, key, f"{key}.bin", shard, _ENGINE, "stage", run, group, "text", False
            )
        )
    return tasks
