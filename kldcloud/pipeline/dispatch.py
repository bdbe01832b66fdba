"""The dispatch loop: which worker does which shard, what is tried again, and when to give up.

Two tasks are in flight a worker, so that none waits for the driver; of the last tasks one, so that
none queues while a worker is idle. A worker that fails is left alone until it answers a ping; only
the task that it was running is blamed, not the one queued behind it. A worker that holds a shard
past its deadline without moving is ended, and its shards go to others. Whether a task is done is
asked of the store, never of a reply.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from kldcloud.errors import EngineError, FormatError, KldcloudError, StoreError, UserError
from kldcloud.pipeline.machines import Actors
from kldcloud.pipeline.tasks import Reply, Task

IN_FLIGHT = 2
QUESTIONS_AT_ONCE = 16
"""To the store. One after the other, at 30 ms each, they halved the speed at 64 shards a second
(`benchmarks/scaling.py`)."""
TICK_SECONDS = 1.0
ASK_SECONDS = 0.3
"""Between two pings of a dead worker."""
MAX_ATTEMPTS = 3
"""Failures of one shard, each with a worker that lives, before its group is given up."""
REVIVAL_SECONDS = 8.0
"""How long every worker may be dead before none is expected back: Ray takes a second to start a
successor. Machines that restart need longer: whoever lends them says so."""


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
    dead_since: float | None = None
    ask_at: float = 0.0
    head_since: float = 0.0


@dataclass(frozen=True, slots=True)
class _Ended:
    """A task that its worker has let go of: with what error, and whether it is to blame."""

    task: Task
    error: KldcloudError | None
    blamed: bool


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
        is_committed: whether the object of a key is in the store; called from several threads.
        on_commit: called once for each task whose object is there.
        is_stuck: called with a worker, its task's key and the seconds it has had for it; whether
            it hangs, in words, or None.
        revival: seconds in which one of them must come back when all are dead.
    """

    def __init__(
        self,
        actors: Actors,
        workers: int,
        is_committed: Callable[[str], bool],
        on_commit: Callable[[Task], None],
        is_stuck: Callable[[int, str, float], str | None] = lambda *_: None,
        revival: float = REVIVAL_SECONDS,
    ) -> None:
        self._actors = actors
        self._is_stuck = is_stuck
        self._revival = revival
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
            EngineError: if every worker is dead and none comes back.
        """
        self._waiting.extend(tasks)
        with ThreadPoolExecutor(QUESTIONS_AT_ONCE) as askers:
            self._run(askers)
        return dict(self._failures)

    def _run(self, askers: ThreadPoolExecutor) -> None:
        while self._waiting or any(worker.running for worker in self._workers):
            for worker in self._workers:
                self._feed(worker)
                self._ask_again(worker)
                self._end_if_stuck(worker)
            references = [w.probe for w in self._workers if w.probe is not None]
            references += [ref for w in self._workers for ref, _ in w.running]
            if self._all_lost():
                raise EngineError(
                    f"every worker died and none came back ({self._last_death})",
                    hint="look for out-of-memory kills; try fewer workers",
                )
            if references:
                ready = self._actors.wait(references, TICK_SECONDS)
                ended = [each for each in map(self._settle, ready) if each is not None]
                for worker in self._workers:
                    self._feed(worker)  # first: a store that answers slowly keeps nobody waiting
                there = askers.map(self._is_committed, [each.task.key for each in ended])
                for each, committed in zip(ended, there, strict=True):
                    self._judge(each, committed=committed)
            else:
                time.sleep(ASK_SECONDS)

    def _feed(self, worker: _Worker) -> None:
        while (
            self._waiting
            and worker.dead_since is None
            and len(worker.running) < (IN_FLIGHT if self._enough_for_all() else 1)
        ):
            task = self._next_task(worker)
            worker.engine = task.engine
            if not worker.running:
                worker.head_since = time.monotonic()
            worker.running.append((self._actors.submit(worker.number, task), task))

    def _enough_for_all(self) -> bool:
        return len(self._waiting) > len(self._workers)

    def _ask_again(self, worker: _Worker) -> None:
        """Ping a worker that is dead as far as anyone knows, in case it has a successor."""
        if (
            worker.dead_since is not None
            and worker.probe is None
            and time.monotonic() >= worker.ask_at
        ):
            worker.probe = self._actors.ping(worker.number)

    def _all_lost(self) -> bool:
        """Whether all are dead for too long. While one lives, a slow successor is waited for."""
        latest = time.monotonic() - self._revival
        return all(
            worker.dead_since is not None and worker.dead_since < latest and not worker.running
            for worker in self._workers
        )

    def _end_if_stuck(self, worker: _Worker) -> None:
        """End a worker that hangs; its shards go elsewhere now, not once its end is known."""
        if not worker.running or worker.dead_since is not None:
            return
        head = worker.running[0][1]
        held = time.monotonic() - worker.head_since
        why = self._is_stuck(worker.number, head.key, held)
        if why is None:
            return
        self._actors.kill(worker.number)
        self._last_death = why
        stranded = [task for _, task in worker.running]
        worker.running.clear()
        self._bury(worker)
        for task in reversed(stranded):
            ended = _Ended(task, WorkerDiedError(why), blamed=task is head)
            self._judge(ended, committed=self._is_committed(task.key))

    def _next_task(self, worker: _Worker) -> Task:
        """The first waiting task for the model that the worker holds, else the first of all."""
        for index, task in enumerate(self._waiting):
            if task.engine == worker.engine:
                del self._waiting[index]
                return task
        return self._waiting.popleft()

    def _settle(self, reference: Any) -> _Ended | None:  # noqa: ANN401
        """Take note of a reply or a death; the task that it ends, if it ends one."""
        for worker in self._workers:
            if worker.probe is reference:
                self._settle_probe(worker)
                return None
            for index, (running, task) in enumerate(worker.running):
                if running is reference:
                    oldest = worker.running[0][0]
                    del worker.running[index]
                    return self._settle_task(worker, reference, task, oldest)
        return None

    def _settle_probe(self, worker: _Worker) -> None:
        probe, worker.probe = worker.probe, None
        try:
            self._actors.get(probe)
        except WorkerDiedError as died:
            self._last_death = str(died)
            worker.ask_at = time.monotonic() + ASK_SECONDS
            return
        worker.dead_since, worker.engine = None, None

    def _settle_task(self, worker: _Worker, reference: Any, task: Task, oldest: Any) -> _Ended:  # noqa: ANN401
        error: KldcloudError | None
        try:
            reply: Reply = self._actors.get(reference)
            error = reply.error
        except WorkerDiedError as died:
            error = died
            if worker.dead_since is None:
                # Of what it had in flight, the oldest task was running.
                worker.culprit, worker.spared = oldest, None
                self._bury(worker)
            if reference is not worker.culprit and worker.spared is None:
                worker.spared = task.key
        except KldcloudError as failed:
            # Something unforeseen in the worker, which lives: counted like any failure.
            error = failed
        worker.head_since = time.monotonic()
        if not isinstance(error, WorkerDiedError):
            self._clear(worker, reference)
        blamed = reference is worker.culprit or not isinstance(error, WorkerDiedError)
        return _Ended(task, error, blamed)

    def _judge(self, ended: _Ended, *, committed: bool) -> None:
        """Count a task as done, put it back, or give its group up."""
        task, error = ended.task, ended.error
        if committed:
            # A worker may commit and die before it replies: the object is what counts.
            self._on_commit(task)
            return
        if task.group in self._failures:
            return
        if error is None:
            error = StoreError(f"{task.key}: the worker replied, the store does not have it")
        if ended.blamed:
            self._attempts[task.key] = self._attempts.get(task.key, 0) + 1
        if _is_final(error) or self._attempts.get(task.key, 0) >= MAX_ATTEMPTS:
            self._give_up(task, error)
        else:
            self._waiting.appendleft(task)

    def _bury(self, worker: _Worker) -> None:
        """Leave a dead worker alone until a ping is answered."""
        worker.dead_since = time.monotonic()
        worker.ask_at = worker.dead_since

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
