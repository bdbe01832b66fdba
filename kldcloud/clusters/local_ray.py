"""Ray on this machine: started for one run, on loopback, with a token, and ended again."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from kldcloud.clusters.interrupts import never_swallowed, put_off
from kldcloud.clusters.ray_actors import (
    ENVIRONMENT,
    GLOO_INTERFACE,
    OBJECT_STORE_BYTES,
    RayActors,
    first_line,
    keep_off_stdout,
)
from kldcloud.clusters.ray_folder import ray_folder
from kldcloud.errors import EngineError
from kldcloud.pipeline.machines import NodeFacts, Seat, WorkerSettings, World, this_node


class LocalMachines:
    """This machine; Ray starts with the first workers."""

    remote = False

    def __init__(self) -> None:
        self._started = contextlib.ExitStack()

    def nodes(self) -> Sequence[NodeFacts]:
        return (this_node(),)

    def start(self, seats: Sequence[Seat], settings: WorkerSettings) -> RayActors:
        self._started.enter_context(local_ray(len(seats), sum(seat.gpus for seat in seats)))
        return RayActors(seats, settings)

    @contextlib.contextmanager
    def room(self, world: World) -> Iterator[Mapping[str, float]]:
        with local_ray(world.processes, world.processes if world.gpus else 0):
            yield {"GPU": 1.0} if world.gpus else {"CPU": 1.0}

    def end(self) -> None:
        self._started.close()


@contextlib.contextmanager
def local_ray(workers: int, gpus: int = 0) -> Iterator[None]:
    """Ray for the length of a run.

    Everything listens on loopback only and asks for a token made for this process; there is no
    dashboard and no usage report. Ray's files go to a folder that is removed at the end. Nothing
    may import ray before: it reads some of these settings only then.

    Raises:
        EngineError: if Ray does not start.
    """
    os.environ.update(ENVIRONMENT)
    os.environ["RAY_AUTH_TOKEN"] = _token()
    os.environ[GLOO_INTERFACE] = "lo0" if sys.platform == "darwin" else "lo"
    # Ray's word for "stay on loopback" (its default on macOS); without it, Ray swaps
    # 127.0.0.1 for the machine's own address and listens on every interface.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray

    keep_off_stdout()
    with ray_folder() as folder:
        try:
            _init(workers, gpus, folder)
            yield
        finally:
            # Also when it was interrupted while it started: some of it may be up.
            with put_off():
                ray.shutdown()


def _init(workers: int, gpus: int, folder: str) -> None:
    import ray

    try:
        with never_swallowed():
            ray.init(
                address="local",
                num_cpus=workers,
                num_gpus=gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                configure_logging=True,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                _temp_dir=folder,
            )
    except Exception as error:  # a bare one, where a busy machine takes it too long
        raise EngineError(
            f"Ray did not start: {first_line(error)}", hint="run kldcloud check"
        ) from error


@cache
def _token() -> str:
    """One for the life of this process: Ray's client keeps the first that it was given."""
    return secrets.token_hex(32)
