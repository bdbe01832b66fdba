"""Workers as Ray actors: each a process that Ray starts again when it dies."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from kldcloud.errors import EngineError
from kldcloud.pipeline.dispatch import WorkerDiedError
from kldcloud.pipeline.machines import Seat, WorkerSettings
from kldcloud.pipeline.tasks import Task

NODE_SHARE = 1e-3
"""Of a machine's own resource that an actor asks for: it only says where."""

OBJECT_STORE_BYTES = 80 * 2**20
"""Ray's least: only tokens and replies pass through it."""

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
"""Where processes that train on CPUs listen for each other: else where the host's name points to,
which is a loopback address on many machines, and the public one on others."""

ENVIRONMENT: Mapping[str, str] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # V1 of Ray Train has no policy for processes that die.
    "RAY_TRAIN_V2_ENABLED": "1",
    # Products inside a worker are cut into fixed tiles; BLAS must not cut them again.
    "OPENBLAS_NUM_THREADS": "1",
    # A worker's large buffers come and go with chunks and models: give them back at once.
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
"""For every process of Ray's; to be set before ray is imported, which reads some of it then."""


class RayActors:
    """One actor a seat.

    Args:
        seats: where they sit.
        settings: what they are told.
        kind: their class; the sweep's own if None.
    """

    def __init__(
        self, seats: Sequence[Seat], settings: WorkerSettings, kind: type | None = None
    ) -> None:
        import ray

        from kldcloud.pipeline.worker import SweepWorker

        self._ray = ray
        self._actors = [
            # Restarted for ever; but tasks are never repeated by Ray: the driver owns retries.
            ray.remote(max_restarts=-1, max_task_retries=0, **_place(seat))(
                kind or SweepWorker
            ).remote(settings, seat, number)
            for number, seat in enumerate(seats)
        ]

    def submit(self, worker: int, task: Task) -> Any:  # noqa: ANN401
        return self._actors[worker].run.remote(task)

    def ping(self, worker: int) -> Any:  # noqa: ANN401
        return self._actors[worker].ping.remote()

    def kill(self, worker: int) -> None:
        self._ray.kill(self._actors[worker], no_restart=False)

    def call(self, worker: int, method: str, *arguments: object) -> Any:  # noqa: ANN401
        return self.get(getattr(self._actors[worker], method).remote(*arguments))

    def usage(self) -> list[dict[str, float]]:
        found = []
        for actor in self._actors:
            with contextlib.suppress(WorkerDiedError, EngineError):
                found.append(self.get(actor.usage.remote()))
        return found

    def wait(self, references: Sequence[Any], timeout: float) -> Sequence[Any]:
        ready, others = self._ray.wait(list(references), num_returns=1, timeout=timeout)
        if ready and others:
            ready += self._ray.wait(others, num_returns=len(others), timeout=0)[0]
        return list(ready)

    def get(self, reference: Any) -> Any:  # noqa: ANN401
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None) or error
            raise EngineError(
                f"a worker failed: {type(cause).__name__}: {first_line(cause)}"
            ) from error
        except exceptions.RayError as error:
            raise WorkerDiedError(_cause_of_death(error)) from error


def keep_off_stdout() -> None:
    """Stop Ray from printing a paragraph where results go each time that a worker dies.

    No option does; dispatch reports what matters, and a test watches stdout.
    """
    import ray._private.worker

    ray._private.worker.print_to_stdstream = lambda *_, **__: None  # noqa: SLF001


def first_line(error: BaseException) -> str:
    """The first line of an error that says anything; Ray's have dozens."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _place(seat: Seat) -> dict[str, Any]:
    if not seat.node:
        return {"num_cpus": 1, "num_gpus": seat.gpus}
    # A machine that comes back after its processes died has the same resource: actors return to it.
    return {"num_cpus": 0, "num_gpus": seat.gpus, "resources": {seat.node: NODE_SHARE}}


def _cause_of_death(error: BaseException) -> str:
    """Ray's first line; but of a worker that could not even be made, the error that stopped it."""
    if "creation task" not in first_line(error):
        return first_line(error)
    return f"a worker could not start: {str(error).strip().splitlines()[-1].strip()}"
