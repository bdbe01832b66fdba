"""The dispatch loop: which worker does which shard, what is tried again, and when to give up.

Two tasks are in flight a worker, so that none waits for the driver. A worker that fails is left
alone until it answers a ping; only the task that it was running is blamed, not the one queued
behind it. Whether a task is done is asked of the store, never of a reply.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from kldcloud.errors import EngineError, FormatError, KldcloudError, StoreError, UserError
from kldcloud.pipeline.tasks import Reply, Task

IN_FLIGHT = 2
MAX_ATTEMPTS = 3
"""Failures of one shard, each with a worker that lives, before its group is given up."""
MAX_REVIVALS = 8
"""Pings in a row that a worker may leave unanswered before it counts as gone for good."""


class Actors(Protocol):
    """The little of Ray that dispatch needs; references are opaque."""

    def submit(self, worker: int, task: Task) -> Any: ...  # noqa: ANN401

    def ping(self, worker: int) -> Any: ...  # noqa: ANN401

    def wait(self, references: Sequence[Any], timeout: float) -> Sequence[Any]: ...

    def get(self, reference: Any) -> Any:  # noqa: ANN401
        """The result; raises WorkerDiedError if the worker did not live to give it."""
        ...


class WorkerDiedError(KldcloudError):
    """A worker process ended in the middle of a task."""


@dataclass(slots=True)
class _Worker:
    number: int
    running: deque[tuple[Any, Task]] = field(default_factory=deque)
    engine: object = None
    probe: Any = None
    culprit: Any = None
    spared: str | None = None
    unanswered: int = 0
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a group was given up: the shard's object, the cause in one line, and its kind."""

    group: str
    key: str
    cause: str
    kind: type[KldcloudError] = EngineError


class Dispatch:
    """Runs tasks to the end on a fixed set of workers.

    Args:
        actors: how workers are reached.
        workers: how many there are.
        is_committed: whether the object of a key is in the store.
        on_commit: called once for each task whose object is there.
    """

    def __init__(
        self,
        actors: Actors,
        workers: int,
        is_committed: Callable[[str], bool],
        on_commit: Callable[[Task], None],
    ) -> None:
        self._actors = actors
        self._workers = [_Worker(number) for number in range(workers)]
        self._is_committed = is_committed
        self._on_commit = on_commit
        self._waiting: deque[Task] = deque()
        self._attempts: dict[str, int] = {}
        self._failures: dict[str, Failure] = {}
        self._last_death = ""

    def run(self, tasks: Sequence[Task]) -> dict[str, Failure]:
        """Run all tasks; a group with a task that fails for good is dropped, others go on.

        Returns:
            The failure of each group that was given up.

        Raises:
            EngineError: if no worker is left.
        """
        self._waiting.extend(tasks)
        while self._waiting or any(worker.running for worker in self._workers):
            for worker in self._workers:
                self._feed(worker)
            references = [w.probe for w in self._workers if w.probe is not None]
            references += [ref for w in self._workers for ref, _ in w.running]
            if not references:
                raise EngineError(
                    f"every worker died and none came back ({self._last_death})",
                    hint="look for out-of-memory kills; try fewer workers",
                )
            for reference in self._actors.wait(references, 1.0):
                self._settle(reference)
        return dict(self._failures)

    def _feed(self, worker: _Worker) -> None:
        while (
            self._waiting
            and not worker.gone
            and worker.probe is None
            and len(worker.running) < IN_FLIGHT
        ):
            task = self._next_task(worker)
            worker.engine = task.engine
            worker.running.append((self._actors.submit(worker.number, task), task))

    def _next_task(self, worker: _Worker) -> Task:
        """The first waiting task for the model that the worker holds, else the first of all."""
        for index, task in enumerate(self._waiting):
            if task.engine == worker.engine:
                del self._waiting[index]
                return task
        return self._waiting.popleft()

    def _settle(self, reference: Any) -> None:  # noqa: ANN401
        for worker in self._workers:
            if worker.probe is reference:
                self._settle_probe(worker)
                return
            for index, (running, task) in enumerate(worker.running):
                if running is reference:
                    oldest = worker.running[0][0]
                    del worker.running[index]
                    self._settle_task(worker, reference, task, oldest)
                    return

    def _settle_probe(self, worker: _Worker) -> None:
        try:
            self._actors.get(worker.probe)
        except WorkerDiedError as died:
            self._last_death = str(died)
            worker.unanswered += 1
            if worker.unanswered >= MAX_REVIVALS:
                worker.gone, worker.probe = True, None
                return
            time.sleep(0.2 * worker.unanswered)
            worker.probe = self._actors.ping(worker.number)
            return
        worker.probe, worker.unanswered, worker.engine = None, 0, None

    def _settle_task(self, worker: _Worker, reference: Any, task: Task, oldest: Any) -> None:  # noqa: ANN401
        error: KldcloudError | None
        try:
            reply: Reply = self._actors.get(reference)
            error = reply.error
        except WorkerDiedError as died:
            error = died
            self._quarantine(worker, oldest)
            if reference is not worker.culprit and worker.spared is None:
                worker.spared = task.key
        except KldcloudError as failed:
            # Something unforeseen in the worker, which lives: counted like any failure.
            error = failed
        if not isinstance(error, WorkerDiedError):
            self._clear(worker, reference)
        if self._is_committed(task.key):
            # A worker may commit and die before it replies: the object is what counts.
            self._on_commit(task)
            return
        if task.group in self._failures:
            return
        if error is None:
            error = StoreError(f"{task.key}: the worker replied, the store does not have it")
        if reference is worker.culprit or not isinstance(error, WorkerDiedError):
            self._attempts[task.key] = self._attempts.get(task.key, 0) + 1
        if _is_final(error) or self._attempts.get(task.key, 0) >= MAX_ATTEMPTS:
            self._give_up(task, error)
        else:
            self._waiting.appendleft(task)

    def _quarantine(self, worker: _Worker, oldest: Any) -> None:  # noqa: ANN401
        """Leave a dead worker alone; of what it had in flight, the oldest task was running."""
        if worker.probe is None and not worker.gone:
            worker.culprit, worker.spared = oldest, None
            worker.probe = self._actors.ping(worker.number)

    def _clear(self, worker: _Worker, reference: Any) -> None:  # noqa: ANN401
        """A task that replied has not killed its worker: if it was taken to, the next one has."""
        if reference is worker.culprit and worker.spared is not None:
            self._attempts[worker.spared] = self._attempts.get(worker.spared, 0) + 1
            worker.spared = None

    def _give_up(self, task: Task, error: KldcloudError) -> None:
        cause = str(error)
        if isinstance(error, WorkerDiedError):
            cause = f"the worker died {MAX_ATTEMPTS} times on this shard ({cause})"
        self._failures[task.group] = Failure(task.group, task.key, cause, type(error))
        self._waiting = deque(other for other in self._waiting if other.group != task.group)


def _is_final(error: KldcloudError) -> bool:
    """Whether trying again cannot help: the input is at fault, not the machine or the network."""
    return isinstance(error, FormatError) or (
        isinstance(error, UserError) and not isinstance(error, StoreError)
    )
