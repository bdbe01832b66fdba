"""A hung worker loses its shard, a slow one keeps it; a store that is away accuses nobody."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from kldcloud.errors import StoreError
from kldcloud.pipeline import deadlines
from kldcloud.pipeline.deadlines import ShardDeadlines
from kldcloud.pipeline.life import DriverLife, WorkerLife, read_worker, worker_key
from kldcloud.pipeline.pulse import DriverPulse, WorkerPulse
from kldcloud.store import open_store
from kldcloud.store.base import Store

DEADLINE = 100.0
TASK = "runs/r/partials/q4/text/00000.parquet"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def beat(store: Store, *, moved_ago: float, task: str = TASK, updated: float = 1e9) -> None:
    """Leave a worker's heartbeat whose last step was so many seconds before it."""
    life = WorkerLife(
        0, "n1", pid=7, updated=updated, moved=updated - moved_ago, task=task, since=updated - 900
    )
    store.write(worker_key("r", "a", 0), json.dumps(asdict(life)).encode())


def test_nobody_is_asked_before_the_deadline(store: Store) -> None:
    beat(store, moved_ago=10_000)
    watch = ShardDeadlines(store, "r", "a", DEADLINE)
    assert watch.is_stuck(0, TASK, held=DEADLINE) is None


def test_a_worker_that_steps_is_slow_and_one_that_does_not_hangs(store: Store) -> None:
    watch = ShardDeadlines(store, "r", "a", DEADLINE)
    beat(store, moved_ago=DEADLINE - 1)
    assert watch.is_stuck(0, TASK, held=10_000) is None
    beat(store, moved_ago=DEADLINE + 20)
    found = ShardDeadlines(store, "r", "a", DEADLINE).is_stuck(0, TASK, held=10_000)
    assert found == "worker 0 on n1 made no step for 120 s"


def test_a_worker_that_rests_or_has_another_task_is_not_accused_of_this_one(store: Store) -> None:
    for task in ("", "another"):
        beat(store, moved_ago=10_000, task=task)
        assert ShardDeadlines(store, "r", "a", DEADLINE).is_stuck(0, TASK, held=10_000) is None


def test_a_heartbeat_that_stands_still_is_a_process_that_does(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "PULSE_SECONDS", 0.02)
    watch = ShardDeadlines(store, "r", "a", 0.1)
    beat(store, moved_ago=0)
    assert watch.is_stuck(0, TASK, held=1) is None
    time.sleep(0.2)
    found = watch.is_stuck(0, TASK, held=1)
    assert found is not None
    assert found.startswith("worker 0 on n1 gave no sign of life for 0")
    beat(store, moved_ago=0, updated=2e9)
    assert watch.is_stuck(0, TASK, held=1) is None


def test_no_heartbeat_and_nonsense_accuse_nobody(store: Store) -> None:
    watch = ShardDeadlines(store, "r", "a", DEADLINE)
    assert watch.is_stuck(0, TASK, held=10_000) is None
    store.write(worker_key("r", "a", 0), b'{"worker": "zero"}')
    assert ShardDeadlines(store, "r", "a", DEADLINE).is_stuck(0, TASK, held=10_000) is None


def test_a_worker_says_what_it_does_and_rests(store: Store) -> None:
    key = worker_key("r", "a", 3)
    pulse = WorkerPulse(store, key, 3, seconds=0.02)
    pulse.begin(TASK)
    pulse.step()
    busy = _until(store, key, chunks=1)
    assert (busy.worker, busy.task) == (3, TASK)
    assert busy.updated >= busy.moved >= busy.since > 0
    pulse.rest()
    assert _until(store, key, chunks=0).task == ""


def test_a_driver_says_how_its_block_ended(store: Store) -> None:
    key = "runs/r/life/a/driver.json"
    with DriverPulse(store, "r", DriverLife("a", workers=2)) as pulse:
        pulse.change(state="measuring", total=10, done=2)
        pulse.advance(3)
    ended = json.loads(store.read(key))
    assert (ended["state"], ended["done"], ended["total"]) == ("finished", 5, 10)
    with (
        pytest.raises(StoreError),
        DriverPulse(store, "r", DriverLife("a")),
    ):
        raise StoreError("the bucket is away", hint="wait")
    ended = json.loads(store.read(key))
    assert (ended["state"], ended["error"]) == ("failed", "the bucket is away; wait")


def _until(store: Store, key: str, *, chunks: int) -> WorkerLife:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        life = read_worker(store, key)
        if life is not None and life.chunks == chunks and (chunks or not life.task):
            return life
        time.sleep(0.01)
    pytest.fail("no such heartbeat")
