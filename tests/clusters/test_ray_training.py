"""Processes that train together: one that is killed costs time, and not a bit of the result."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from kldcloud.clusters import ray_training
from kldcloud.clusters.local_ray import LocalMachines
from kldcloud.clusters.ray_training import train
from kldcloud.errors import EngineError
from kldcloud.pipeline.machines import World
from kldcloud.qad.process import train_process
from kldcloud.qad.progress_file import read_progress
from kldcloud.qad.training_order import TrainingOrder
from kldcloud.store import open_store
from kldcloud.store.base import Store
from tests.pipeline.sweeps import descendants
from tests.qad.small_training import order, tiny_init, tiny_teacher

pytestmark = pytest.mark.slow

TWO = World(machines=1, each=2, gpus=False)
OBJECTS = ("weights.safetensors", "optimizer.safetensors", "state.json")


def last_checkpoint(store: Store, whole: TrainingOrder) -> dict[str, bytes]:
    folder = f"{whole.prefix}/checkpoints/{whole.batches.steps:08d}"
    return {name: store.read(f"{folder}/{name}") for name in OBJECTS}


def processes_that_train() -> list[int]:
    """Ours: Ray gives them a title."""
    below = descendants(os.getpid()).items()
    return [pid for pid, title in below if title.startswith("ray::RayTrainWorker")]


def test_a_process_that_is_killed_changes_no_bit(tmp_path: Path) -> None:
    teacher = tiny_teacher(tmp_path)
    quiet, disturbed = (open_store(str(tmp_path / name)) for name in ("quiet", "disturbed"))
    init, options = tiny_init(teacher), {"checkpoint_every": 2, "train": {"epochs": 3}}
    whole = order(teacher, init, quiet, **options)
    assert order(teacher, init, disturbed, **options).tokens == whole.tokens
    train(LocalMachines(), TWO, partial(train_process, whole, quiet.uri))

    killed = []

    def kill() -> None:
        while not killed:
            found = read_progress(disturbed, whole.prefix)
            if found is not None and found.step >= 3:
                killed.append(found.step)
                one, other = processes_that_train()
                os.kill(max(one, other), signal.SIGKILL)
            time.sleep(0.01)

    threading.Thread(target=kill, daemon=True).start()
    train(LocalMachines(), TWO, partial(train_process, whole, disturbed.uri))
    (step,) = killed
    assert step < whole.batches.steps
    assert last_checkpoint(disturbed, whole) == last_checkpoint(quiet, whole)


def test_processes_that_cannot_live_end_it_in_one_line() -> None:
    with pytest.raises(EngineError, match=r"training processes died: .*int.* 2 arg") as caught:
        train(LocalMachines(), World(1, 1, gpus=False), int)
    assert "goes on from the last checkpoint" in str(caught.value)


@pytest.mark.parametrize(
    ("ray", "said"),
    [
        (
            "[Rank 0]\nkldcloud.errors.StoreError: store /s is on a full disk (a/b); free some\n",
            "store /s is on a full disk (a/b)",
        ),
        (
            "The worker died unexpectedly. Check python-core-worker-*.log files.",
            "The worker died unexpectedly",
        ),
        (" \n", "RuntimeError"),
    ],
)
def test_how_they_died_is_one_sentence_and_no_advice_about_rays_logs(ray: str, said: str) -> None:
    assert ray_training._said(RuntimeError(ray)) == said
