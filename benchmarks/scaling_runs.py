"""The runs of `scaling.py`: workers that only take time, under the pipeline's own dispatch."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from processor_time import Stopwatch
from synthetic_worker import SyntheticActors, SyntheticSettings, make_tasks, start_key

from kldcloud.clusters.local_ray import local_ray
from kldcloud.pipeline.deadlines import ShardDeadlines
from kldcloud.pipeline.dispatch import Dispatch
from kldcloud.pipeline.life import new_attempt, read_worker, worker_key
from kldcloud.pipeline.tasks import Task
from kldcloud.store import Store

DEADLINE_SECONDS = 600.0
FAILING_EVERY = 100


@dataclass(frozen=True, slots=True)
class Row:
    """One number of actors, all healthy.

    Attributes:
        actors: worker processes.
        shards: in all.
        ideal_seconds: shards x cost / actors.
        wall_seconds: from the first submission to the last commit that the driver knows of.
        efficiency: ideal / wall.
        driver_cpu_ms: a shard.
        commit_ms: a shard, in the worker.
        gap_ms: between a worker's reply and its next task, on average.
        peer_efficiency: ActorPool's.
        peer_driver_cpu_ms: ActorPool's, a shard.
        start_seconds: for Ray and the actors; in no efficiency.
        peak_mib: resident, of the largest worker.
        ours: share of all cores that our processes took during our part, and
        others: everybody else's; None if the system does not tell.
        lost: shards that the store does not have afterwards.
    """

    actors: int
    shards: int
    ideal_seconds: float
    wall_seconds: float
    efficiency: float
    driver_cpu_ms: float
    commit_ms: float
    gap_ms: float
    peer_efficiency: float
    peer_driver_cpu_ms: float
    start_seconds: float
    peak_mib: float
    ours: float | None
    others: float | None
    lost: int


@dataclass(frozen=True, slots=True)
class FaultRow:
    """A run with failing commits and killed workers.

    Attributes:
        failing: shards whose first commit fails.
        kills: workers that were killed.
        dead_seconds: between each kill and its successor being ready, summed.
        efficiency: shards x cost / seconds that workers were alive.
        of_all: shards x cost / actors / wall, as if no process had been away.
        extra_attempts: submissions beyond one a shard.
        commits: that the driver counted.
        lost: shards that the store does not have afterwards.
        surplus: objects that the store has and should not.
        given_up: groups that the dispatch gave up.
    """

    actors: int
    shards: int
    failing: int
    kills: int
    dead_seconds: float
    wall_seconds: float
    efficiency: float
    of_all: float
    driver_cpu_ms: float
    extra_attempts: int
    commits: int
    lost: int
    surplus: int
    given_up: int
    ours: float | None
    others: float | None


class Bench:
    """What all runs share.

    Args:
        store: where they commit.
        seconds: that a shard takes.
        ask_seconds: that the driver's question whether a shard is there takes on top.
    """

    def __init__(self, store: Store, seconds: float, ask_seconds: float = 0.0) -> None:
        self.store = store
        self.seconds = seconds
        self._ask_seconds = ask_seconds
        self.run = f"scaling-{secrets.token_hex(4)}"
        self.attempt = new_attempt()

    @contextlib.contextmanager
    def actors(self, count: int) -> Iterator[tuple[SyntheticActors, float]]:
        """So many actors that have answered, and the seconds that it took to start them."""
        began = time.perf_counter()
        with local_ray(count):
            settings = SyntheticSettings(
                self.store.uri, self.run, self.attempt, remote=False, seconds=self.seconds
            )
            actors = SyntheticActors(count, settings)
            for ping in [actors.ping(number) for number in range(count)]:
                actors.get(ping)
            yield actors, time.perf_counter() - began

    def dispatch(self, actors: SyntheticActors, count: int, done: list[str]) -> Dispatch:
        """The pipeline's own, wired as a sweep wires it."""
        deadlines = ShardDeadlines(self.store, self.run, self.attempt, DEADLINE_SECONDS)
        return Dispatch(
            actors,
            count,
            self._is_there,
            lambda task: done.append(task.key),
            deadlines.is_stuck,
        )

    def _is_there(self, key: str) -> bool:
        if self._ask_seconds:
            time.sleep(self._ask_seconds)
        return self.store.size(key) is not None

    def committed(self, group: str) -> set[str]:
        """Keys of a group that the store has."""
        return {info.key for info in self.store.list(f"runs/{self.run}/partials/{group}/")}


def healthy(bench: Bench, count: int, shards: int) -> Row:
    """One row: the pipeline and the peer on the same actors, which both find warm."""
    ours = make_tasks(bench.run, f"healthy-{count}", shards)
    theirs = make_tasks(bench.run, f"pool-{count}", shards)
    done: list[str] = []
    with bench.actors(count) as (actors, start):
        # An actor's first task takes longer: it is nobody's.
        _run_pool(actors.handles, make_tasks(bench.run, f"warm-{count}", count))
        dispatch = bench.dispatch(actors, count, done)
        watch = Stopwatch()
        dispatch.run(ours)
        took = watch.stop()
        usage = actors.usage()
        watch = Stopwatch()
        _run_pool(actors.handles, theirs)
        peer = watch.stop()
    ideal = shards * bench.seconds / count
    return Row(
        actors=count,
        shards=shards,
        ideal_seconds=ideal,
        wall_seconds=took.wall_seconds,
        efficiency=ideal / took.wall_seconds,
        driver_cpu_ms=1e3 * took.driver_seconds / shards,
        commit_ms=1e3 * sum(each["commit_seconds"] for each in usage) / shards,
        gap_ms=1e3 * sum(each["gap_seconds"] for each in usage) / max(shards - count, 1),
        peer_efficiency=ideal / peer.wall_seconds,
        peer_driver_cpu_ms=1e3 * peer.driver_seconds / shards,
        start_seconds=start,
        peak_mib=max(each["peak_bytes"] for each in usage) / 2**20,
        ours=took.ours,
        others=took.others,
        lost=len({task.key for task in ours} - bench.committed(f"healthy-{count}")),
    )


def _run_pool(handles: Any, tasks: list[Task]) -> None:  # noqa: ANN401 - Ray's actor handles
    from ray.util import ActorPool

    for reply in ActorPool(handles).map_unordered(
        lambda actor, task: actor.run.remote(task), tasks
    ):
        assert reply.error is None


class Killer:
    """Kills one worker after the other while its block lasts, each by its present process id."""

    def __init__(self, bench: Bench, count: int, every: float) -> None:
        self.kills: list[tuple[int, float]] = []
        self._bench = bench
        self._count = count
        self._every = every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        bench = self._bench
        for number in itertools.cycle(range(self._count)):
            if self._over.wait(self._every):
                return
            life = read_worker(bench.store, worker_key(bench.run, bench.attempt, number))
            # One that is not back since its last kill has no process to end.
            with contextlib.suppress(ProcessLookupError):
                if life is not None:
                    os.kill(life.pid, signal.SIGKILL)
                    self.kills.append((number, time.time()))

    def dead_seconds(self, end: float) -> float:
        """Between each kill and the successor's first breath, or the run's end."""
        bench = self._bench
        born: dict[int, list[float]] = {}
        for info in bench.store.list(start_key(bench.run, 0, 0).rpartition("/")[0] + "/"):
            number = int(info.key.rpartition("/")[2].partition("-")[0])
            born.setdefault(number, []).append(float(bench.store.read(info.key)))
        return sum(
            min([at for at in born[number] if at > killed] + [end]) - killed
            for number, killed in self.kills
        )


def faulty(bench: Bench, count: int, shards: int, every: float) -> FaultRow:
    """The same with failures and deaths; without a peer, for none of its kind survives them."""
    tasks = make_tasks(bench.run, "faulty", shards, FAILING_EVERY)
    failing = sum(1 for at in range(shards) if at % FAILING_EVERY == FAILING_EVERY // 2)
    done: list[str] = []
    with bench.actors(count) as (actors, _):
        dispatch = bench.dispatch(actors, count, done)
        with Killer(bench, count, every) as killer:
            watch = Stopwatch()
            given_up = dispatch.run(tasks)
            took = watch.stop()
            end = time.time()
    dead = killer.dead_seconds(end)
    there, wanted = bench.committed("faulty"), {task.key for task in tasks}
    work = shards * bench.seconds
    return FaultRow(
        actors=count,
        shards=shards,
        failing=failing,
        kills=len(killer.kills),
        dead_seconds=dead,
        wall_seconds=took.wall_seconds,
        efficiency=work / (count * took.wall_seconds - dead),
        of_all=work / (count * took.wall_seconds),
        driver_cpu_ms=1e3 * took.driver_seconds / shards,
        extra_attempts=actors.submitted - shards,
        commits=len(done),
        lost=len(wanted - there),
        surplus=len(there - wanted) + len(done) - len(set(done)),
        given_up=len(given_up),
        ours=took.ours,
        others=took.others,
    )
