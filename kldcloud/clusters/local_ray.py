"""Ray on this machine: started for one run, on loopback, with a token, and ended again."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from kldcloud.clusters.ray_folder import ray_folder
from kldcloud.errors import EngineError
from kldcloud.pipeline.dispatch import WorkerDiedError
from kldcloud.pipeline.tasks import Task

OBJECT_STORE_BYTES = 80 * 2**20
"""Ray's least: only tokens and replies pass through it."""


class RayActors:
    """Workers as Ray actors, each a process that Ray starts again when it dies."""

    def __init__(self, workers: int, threads: int, store: str, memory: int | None) -> None:
        import ray

        from kldcloud.pipeline.worker import SweepWorker

        self._ray = ray
        # Restarted for ever; but tasks are never repeated by Ray: the driver owns retries.
        kind = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=0)(SweepWorker)
        self._actors = [kind.remote(store, threads, memory) for _ in range(workers)]

    def submit(self, worker: int, task: Task) -> Any:  # noqa: ANN401
        return self._actors[worker].run.remote(task)

    def ping(self, worker: int) -> Any:  # noqa: ANN401
        return self._actors[worker].ping.remote()

    def call(self, worker: int, method: str, *arguments: object) -> Any:  # noqa: ANN401
        """Any other method of a worker, waited for."""
        return self.get(getattr(self._actors[worker], method).remote(*arguments))

    def usage(self) -> list[dict[str, float]]:
        """What each worker that still answers has used; see `SweepWorker.usage`."""
        found = []
        for actor in self._actors:
            with contextlib.suppress(WorkerDiedError, EngineError):
                found.append(self.get(actor.usage.remote()))
        return found

    def wait(self, references: Sequence[Any], timeout: float) -> Sequence[Any]:
        ready, _ = self._ray.wait(list(references), num_returns=1, timeout=timeout)
        return list(ready)

    def get(self, reference: Any) -> Any:  # noqa: ANN401
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None) or error
            raise EngineError(
                f"a worker failed: {type(cause).__name__}: {_first_line(cause)}"
            ) from error
        except exceptions.RayError as error:
            raise WorkerDiedError(_cause_of_death(error)) from error


@contextlib.contextmanager
def local_ray(workers: int) -> Iterator[None]:
    """Ray for the length of a run.

    Everything listens on loopback only and asks for a token made for this process; there is no
    dashboard and no usage report. Ray's files go to a folder that is removed at the end. Nothing
    may import ray before: it reads some of these settings only then.

    Raises:
        EngineError: if Ray does not start.
    """
    os.environ.update(
        {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": _token(),
            # Ray's word for "stay on loopback" (its default on macOS); without it, Ray swaps
            # 127.0.0.1 for the machine's own address and listens on every interface.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            # Products inside a worker are cut into fixed tiles; BLAS must not cut them again.
            "OPENBLAS_NUM_THREADS": "1",
            # A worker's large buffers come and go with chunks and models: give them back at once.
            "MALLOC_ARENA_MAX": "2",
            "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
            "ARROW_DEFAULT_MEMORY_POOL": "system",
        }
    )
    import ray

    _keep_off_stdout()
    with ray_folder() as folder:
        try:
            ray.init(
                address="local",
                num_cpus=workers,
                num_gpus=0,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                configure_logging=True,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                _temp_dir=folder,
            )
            yield
        except (RuntimeError, OSError, ValueError, TimeoutError) as error:
            if ray.is_initialized():
                raise
            raise EngineError(
                f"Ray did not start: {_first_line(error)}", hint="run kldcloud check"
            ) from error
        finally:
            # Also when it was interrupted while it started: some of it may be up.
            ray.shutdown()


@cache
def _token() -> str:
    """One for the life of this process: Ray's client keeps the first that it was given."""
    return secrets.token_hex(32)


def _keep_off_stdout() -> None:
    """Stop Ray from printing a paragraph where results go each time that a worker dies.

    No option does; dispatch reports what matters, and a test watches stdout.
    """
    import ray._private.worker

    ray._private.worker.print_to_stdstream = lambda *_, **__: None  # noqa: SLF001


def _cause_of_death(error: BaseException) -> str:
    """Ray's first line; but of a worker that could not even be made, the error that stopped it."""
    if "creation task" not in _first_line(error):
        return _first_line(error)
    return f"a worker could not start: {str(error).strip().splitlines()[-1].strip()}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
