"""Who does what, what is tried again, who is blamed: the dispatch loop over real Ray actors."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kldcloud.clusters.ray_actors import RayActors
from kldcloud.corpus.chunks import Shard
from kldcloud.errors import EngineError, FormatError, StoreError
from kldcloud.models.llama_engine import LlamaOptions
from kldcloud.pipeline.dispatch import IN_FLIGHT, MAX_ATTEMPTS, Dispatch, Failure
from kldcloud.pipeline.machines import Seat, WorkerSettings
from kldcloud.pipeline.tasks import EngineRef, MeasureTask, ModelRef, Reply, Task
from tests.pipeline.conftest import MOST_WORKERS

pytestmark = pytest.mark.usefixtures("one_ray")

ENGINE = EngineRef(ModelRef(Path("none.gguf"), "0" * 64, 1), 128, LlamaOptions())


PATIENCE = 5.0
"""Seconds after which a test takes a worker for hung: more than a loaded machine needs."""


class ScriptedWorker:
    """A worker that commits by making a file, and misbehaves where a task's name says so."""

    def __init__(self, settings: WorkerSettings, seat: Seat, number: int) -> None:
        del seat, number
        self._store = Path(settings.store)
        if (self._store / "no-worker-starts").exists():
            os.kill(os.getpid(), signal.SIGKILL)

    def ping(self) -> int:
        return os.getpid()

    def run(self, task: Task) -> Reply:
        with (self._store / "tried").open("a") as log:
            log.write(task.key + "\n")
        what = task.key.rpartition("-")[2]
        if what == "poison" or (what == "once" and self._tries(task) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "last":
            (self._store / "no-worker-starts").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "hang" and self._tries(task) == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "format":
            return Reply(task.key, FormatError(f"{task.key} is no model"))
        if what == "flaky" and self._tries(task) < MAX_ATTEMPTS:
            return Reply(task.key, StoreError("the store was away"))
        if what == "away":
            return Reply(task.key, StoreError("the store is away"))
        if what == "forgetful":
            return Reply(task.key)
        if what == "bug":
            raise ZeroDivisionError("a bug of ours")
        self._commit(task, slowly=what == "slow")
        if what == "committed":
            os.kill(os.getpid(), signal.SIGKILL)
        return Reply(task.key)

    def _commit(self, task: Task, *, slowly: bool) -> None:
        if slowly:
            time.sleep(2.0)
            (self._store / f"by-{os.getpid()}").touch()
        (self._store / task.key).touch()

    def _tries(self, task: Task) -> int:
        return (self._store / "tried").read_text().split().count(task.key)


class ScriptedActors(RayActors):
    """The pipeline's own Ray actors, of the class above."""

    def __init__(self, workers: int, store: Path) -> None:
        import ray

        # Workers can import kldcloud, but no test module: the class must travel to them whole.
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        settings = WorkerSettings(str(store), "run", "attempt", remote=False)
        super().__init__([Seat("", 1, None)] * workers, settings, ScriptedWorker)


def tasks(group: str, *keys: str) -> list[Task]:
    """Tasks of one group; what a key ends in, after its hyphen, is what happens to it."""
    return [
        MeasureTask(
            group, key, f"{key}.bin", Shard(at, 1), ENGINE, "stage", "run", group, "text", False
        )
        for at, key in enumerate(keys)
    ]


class Outcome:
    """What came of a dispatch."""

    def __init__(self, store: Path, failures: dict[str, Failure], committed: list[str]) -> None:
        self.failures = failures
        self.committed = committed
        self.tried = (store / "tried").read_text().split()


@pytest.fixture
def dispatched(tmp_path: Path) -> Any:
    """Run tasks on so many workers."""

    def run(wanted: Sequence[Task], workers: int = 1) -> Outcome:
        committed: list[str] = []
        actors = ScriptedActors(workers, tmp_path)
        dispatch = Dispatch(
            actors,
            workers,
            lambda key: (tmp_path / key).exists(),
            lambda task: committed.append(task.key),
        )
        return Outcome(tmp_path, dispatch.run(wanted), committed)

    return run


def test_every_task_is_committed_once(dispatched: Any) -> None:
    keys = [f"k{n}" for n in range(20)]
    outcome = dispatched(tasks("a", *keys), workers=MOST_WORKERS)
    assert sorted(outcome.committed) == sorted(outcome.tried) == sorted(keys)
    assert outcome.failures == {}


def test_no_shard_queues_behind_another_while_a_worker_is_idle(
    dispatched: Any, tmp_path: Path
) -> None:
    keys = [f"k{n}-slow" for n in range(MOST_WORKERS)]
    outcome = dispatched(tasks("a", *keys), workers=MOST_WORKERS)
    assert sorted(outcome.committed) == keys
    assert len(list(tmp_path.glob("by-*"))) == MOST_WORKERS


def test_a_poison_shard_fails_its_own_group_after_the_cap_and_no_other(dispatched: Any) -> None:
    ill = tasks("ill", "i0", "i1-poison", "i2")
    outcome = dispatched([*ill, *tasks("well", "w0", "w1", "w2", "w3")])
    assert list(outcome.failures) == ["ill"]
    failure = outcome.failures["ill"]
    assert (failure.group, failure.key) == ("ill", "i1-poison")
    assert f"the worker died {MAX_ATTEMPTS} times on this shard" in failure.cause
    # A death that swallows the reply of the task before it is not held against anyone.
    assert MAX_ATTEMPTS <= outcome.tried.count("i1-poison") <= IN_FLIGHT * MAX_ATTEMPTS
    assert {"i0", "w0", "w1", "w2", "w3"} <= set(outcome.committed)


@pytest.mark.slow
def test_what_was_queued_behind_a_poison_shard_is_not_blamed(dispatched: Any) -> None:
    # On one worker with two in flight the neighbour goes down with each of the poison's deaths.
    assert IN_FLIGHT == 2
    poison = [task for n in range(3) for task in tasks(f"ill{n}", f"p{n}-poison")]
    neighbours = tasks("well", "w0")
    outcome = dispatched([poison[0], *neighbours, *poison[1:]])
    assert set(outcome.failures) == {"ill0", "ill1", "ill2"}
    assert outcome.committed == ["w0"]
    # Ray may have started the second of two poisons again before the first one's death was known.
    for task in poison:
        assert MAX_ATTEMPTS <= outcome.tried.count(task.key) <= IN_FLIGHT * MAX_ATTEMPTS


def test_a_worker_that_dies_once_costs_one_more_try(dispatched: Any) -> None:
    outcome = dispatched(tasks("a", "k0", "k1-once", "k2", "k3"), workers=2)
    assert outcome.failures == {}
    assert sorted(outcome.committed) == ["k0", "k1-once", "k2", "k3"]
    assert outcome.tried.count("k1-once") == 2


def test_a_worker_that_dies_after_its_commit_loses_nothing(dispatched: Any) -> None:
    outcome = dispatched(tasks("a", "k0-committed", "k1-committed", "k2"))
    assert outcome.failures == {}
    assert sorted(outcome.committed) == ["k0-committed", "k1-committed", "k2"]
    assert outcome.tried.count("k0-committed") == outcome.tried.count("k1-committed") == 1


def test_an_input_that_is_at_fault_is_tried_once(dispatched: Any) -> None:
    outcome = dispatched([*tasks("ill", "i-format", "i1"), *tasks("well", "w0")])
    failure = outcome.failures["ill"]
    assert (failure.key, failure.cause) == ("i-format", "i-format is no model")
    assert outcome.tried.count("i-format") == 1
    assert "w0" in outcome.committed


def test_a_store_that_comes_back_in_time_costs_nothing(dispatched: Any) -> None:
    outcome = dispatched(tasks("a", "k0-flaky", "k1"))
    assert outcome.failures == {}
    assert outcome.tried.count("k0-flaky") == MAX_ATTEMPTS


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        ("away", "the store is away"),
        ("forgetful", "k-forgetful: the worker replied, the store does not have it"),
        ("bug", "a worker failed: ZeroDivisionError: a bug of ours"),
    ],
)
def test_what_fails_each_time_is_given_up_after_the_cap_with_its_cause(
    dispatched: Any, what: str, cause: str
) -> None:
    outcome = dispatched(tasks("a", f"k-{what}"))
    assert outcome.failures["a"].cause == cause
    assert outcome.tried == [f"k-{what}"] * MAX_ATTEMPTS


def test_a_worker_that_hangs_is_ended_and_its_shards_go_elsewhere(tmp_path: Path) -> None:
    accused: list[str] = []

    def is_stuck(worker: int, task: str, held: float) -> str | None:
        if not task.endswith("-hang") or held < PATIENCE:
            return None
        accused.append(task)
        return f"worker {worker} made no step"

    committed: list[str] = []
    dispatch = Dispatch(
        ScriptedActors(2, tmp_path),
        2,
        lambda key: (tmp_path / key).exists(),
        lambda task: committed.append(task.key),
        is_stuck,
    )
    keys = ["k0-hang", *(f"k{n}" for n in range(1, 8))]
    assert dispatch.run(tasks("a", *keys)) == {}
    assert sorted(committed) == sorted(keys)
    assert accused == ["k0-hang"]
    assert (tmp_path / "tried").read_text().split().count("k0-hang") == 2


@pytest.mark.slow
def test_when_no_worker_comes_back_the_run_says_so(dispatched: Any) -> None:
    with pytest.raises(EngineError, match="every worker died and none came back"):
        dispatched(tasks("a", "k0", "k1-last", "k2"))
