"""How many workers a machine gets, and how many threads each."""

from __future__ import annotations

import os
from dataclasses import dataclass

from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.engine import EngineOptions

MODEL_OVERHEAD = 1.5
"""Memory of a worker in sizes of its model: weights, repacked copies, caches, a chunk of logits."""
WORKER_BYTES = 1 << 30
"""And this on top, for the interpreter, the kernel and one chunk's buffers."""
MEMORY_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class WorkerLayout:
    """Processes and threads on this machine.

    Attributes:
        workers: processes that each hold one model.
        threads: CPU threads of one.
        memory: bytes that one may take; None for no bound.
    """

    workers: int
    threads: int
    memory: int | None


def worker_layout(
    cluster: ClusterSpec, engine: EngineOptions, model_bytes: int, chunks: int
) -> WorkerLayout:
    """Divide this machine.

    `auto` gives one worker to a GPU; on CPUs as many single-threaded ones as there are cores and
    memory for (no barriers between threads), the cores shared evenly if memory allows fewer.

    Args:
        cluster: what the cluster file says.
        engine: what the job says.
        model_bytes: size of the largest model.
        chunks: how many there are: more workers than that would idle.
    """
    cores = len(os.sched_getaffinity(0))
    wanted = cluster.engine_for(engine)
    if isinstance(cluster.workers, int):
        workers = cluster.workers
    elif wanted.n_gpu_layers != 0:
        workers = 1
    else:
        each = int(model_bytes * MODEL_OVERHEAD) + WORKER_BYTES
        workers = max(1, min(cores, int(_free_memory() * MEMORY_SHARE) // each))
    workers = max(1, min(workers, chunks))
    threads = wanted.threads or cluster.threads_per_worker or max(1, cores // workers)
    return WorkerLayout(workers, threads, cluster.memory_per_worker)


def _free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
