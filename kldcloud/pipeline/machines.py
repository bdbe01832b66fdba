"""What the pipeline asks of the machines that it runs on, whoever lends them."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from kldcloud.pipeline.tasks import Task

GPUS: Final = "GPUs"
"""The name under which a machine's GPUs stand among its libraries."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One machine.

    Attributes:
        name: of the machine within its cluster; empty for this machine alone.
        host: what it calls itself.
        cores: that this process may use.
        memory: bytes free.
        gpus: NVIDIA GPUs.
        engine: version, backend, instruction set and devices of its llama.cpp.
        engine_on_cpu: the same where no GPU takes part.
        libraries: versions of torch and transformers where they are installed, and the GPUs'
            names.
    """

    name: str
    host: str
    cores: int
    memory: int
    gpus: int
    engine: Mapping[str, str]
    engine_on_cpu: Mapping[str, str] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Seat:
    """The place of one worker.

    Attributes:
        node: name of its machine.
        threads: CPU threads.
        memory: bytes that it may take; None for no bound.
        gpus: GPUs of its own; 0 leaves it whatever the machine shows.
    """

    node: str
    threads: int
    memory: int | None
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What all workers of a launch are told.

    Attributes:
        store: its URI.
        run: the run's id and
        attempt: the driver's: where heartbeats go.
        remote: whether models may have to be fetched, for the driver ran elsewhere.
    """

    store: str
    run: str
    attempt: str
    remote: bool


@dataclass(frozen=True, slots=True)
class World:
    """Processes that train together, the same number on every machine.

    Attributes:
        machines: how many machines.
        each: processes on one of them.
        gpus: whether each process has a GPU of its own.
    """

    machines: int
    each: int
    gpus: bool

    @property
    def processes(self) -> int:
        return self.machines * self.each


class Actors(Protocol):
    """Workers, by number; references are opaque."""

    def submit(self, worker: int, task: Task) -> Any: ...  # noqa: ANN401

    def ping(self, worker: int) -> Any: ...  # noqa: ANN401

    def kill(self, worker: int) -> None:
        """End a worker's process; another takes its place."""
        ...

    def wait(self, references: Sequence[Any], timeout: float) -> Sequence[Any]: ...

    def get(self, reference: Any) -> Any:  # noqa: ANN401
        """The result; raises WorkerDiedError if the worker did not live to give it."""
        ...

    def call(self, worker: int, method: str, *arguments: object) -> Any:  # noqa: ANN401
        """Any other method of a worker, waited for."""
        ...

    def usage(self) -> list[dict[str, float]]:
        """What each worker that still answers has used; see `SweepWorker.usage`."""
        ...


class Machines(Protocol):
    """Where workers run."""

    @property
    def remote(self) -> bool:
        """Whether a file of the driver's may be missing where a worker runs."""
        ...

    def nodes(self) -> Sequence[NodeFacts]:
        """The machines, in an order that does not change."""
        ...

    def start(self, seats: Sequence[Seat], settings: WorkerSettings) -> Actors:
        """Start one worker a seat."""
        ...

    def room(self, world: World) -> AbstractContextManager[Mapping[str, float]]:
        """Ray with room for processes that train together, for the length of the block.

        Yields what one of them asks Ray for, so that every machine gets its own number of them.
        """
        ...

    def end(self) -> None:
        """End what was started; nothing happens if nothing was."""
        ...


def this_node(name: str = "") -> NodeFacts:
    """The facts of the machine that this runs on."""
    from kldcloud.models.llama_library import build_facts
    from kldcloud.models.transformers_library import library_versions

    gpus = _gpu_names()
    kinds = " + ".join(sorted(set(gpus)))
    return NodeFacts(
        name=name,
        host=socket.gethostname(),
        cores=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        gpus=len(gpus),
        engine=build_facts(),
        engine_on_cpu=build_facts(gpus=False),
        libraries=library_versions() | ({GPUS: kinds} if kinds else {}),
    )


def _gpu_names() -> list[str]:
    """One an NVIDIA GPU, as its driver says; no library has to be loaded for it."""
    names = []
    for folder in Path("/proc/driver/nvidia/gpus").glob("*"):
        try:
            lines = (folder / "information").read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        found = [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
        names.append(found[0] if found else "GPU")
    return names
