"""How many workers each machine gets, and what each of them gets of it."""

from __future__ import annotations

from collections.abc import Sequence

from kldcloud.pipeline.machines import NodeFacts, Seat, World
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.engine import EngineOptions

MODEL_OVERHEAD = 1.5
"""Memory of a worker in sizes of its model: weights, repacked copies, caches, a chunk of logits."""
PROCESS_BYTES = 512 << 20
"""And this on top, for the interpreter, the kernel and the engine."""
LOGITS_CHUNKS = 4
"""And so many chunks of float32 logits: llama.cpp's graph and its output, rebuilt rows, codes.
Measured at V = 248,320 (benchmarks/full_corpus.py): a peak of 1.4 GiB, of which three are 0.7."""
MEMORY_SHARE = 0.7


def seats_for(
    cluster: ClusterSpec,
    engine: EngineOptions,
    nodes: Sequence[NodeFacts],
    model_bytes: int,
    logits_bytes: int,
    chunks: int,
    *,
    on_gpu: bool,
) -> tuple[Seat, ...]:
    """Divide machines among workers; the order is round the machines, so that few chunks spread.

    `auto` gives one worker to a GPU (or to `gpus_per_worker` of them); on CPUs as many
    single-threaded ones as there are cores and memory for (no barriers between threads), the cores
    shared evenly if memory allows fewer.

    Args:
        cluster: what the cluster file says.
        engine: what the job says.
        nodes: the machines.
        model_bytes: size of the largest model.
        logits_bytes: of one chunk's scored rows, as float32.
        chunks: how many there are: more workers than that would idle.
        on_gpu: whether models run on GPUs.
    """
    wanted = cluster.engine_for(engine)
    each = int(model_bytes * MODEL_OVERHEAD) + PROCESS_BYTES + LOGITS_CHUNKS * logits_bytes
    by_node = [_seats_on(node, cluster, wanted, each, chunks, on_gpu=on_gpu) for node in nodes]
    most = max(len(seats) for seats in by_node)
    dealt = [seats[turn] for turn in range(most) for seats in by_node if turn < len(seats)]
    return tuple(dealt[: max(1, chunks)])


def world_for(cluster: ClusterSpec, nodes: Sequence[NodeFacts], gpus: int) -> World:
    """Processes that train together: one for each GPU, or so many a machine as the cluster says.

    Args:
        cluster: what the cluster file says.
        nodes: the machines.
        gpus: of this one that torch can use. Others have the same torch, and may have fewer GPUs.
    """
    if len(nodes) > 1:
        gpus = min(gpus, *(node.gpus for node in nodes))
    each = cluster.workers if cluster.workers != "auto" else max(gpus, 1)
    return World(len(nodes), each, gpus >= each)


def _seats_on(
    node: NodeFacts,
    cluster: ClusterSpec,
    engine: EngineOptions,
    each: int,
    chunks: int,
    *,
    on_gpu: bool,
) -> list[Seat]:
    gpus = 0
    if on_gpu:
        share = cluster.gpus_per_worker
        gpus = min(node.gpus, 1 if share is None else share)
    if isinstance(cluster.workers, int):
        workers = cluster.workers
        if gpus * workers > node.gpus:
            gpus = 0  # more workers than GPUs: they share what the machine shows
    elif on_gpu:
        workers = max(1, node.gpus // gpus) if gpus else 1
    else:
        workers = max(1, min(node.cores, int(node.memory * MEMORY_SHARE) // each))
    workers = max(1, min(workers, chunks))
    threads = engine.threads or cluster.threads_per_worker or max(1, node.cores // workers)
    return [Seat(node.name, threads, cluster.memory_per_worker, gpus)] * workers
