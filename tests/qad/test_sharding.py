"""Two processes train as one does: with whole models, and with models spread over them."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing

from kldcloud.errors import UserError
from kldcloud.qad.checkpoints import Checkpoint, Checkpoints
from kldcloud.qad.training import Training
from kldcloud.store import open_store
from tests.qad.small_training import order, tiny_init, tiny_nvfp4, tiny_teacher

TRAIN = {"global_batch": 4, "lr": 1e-4}
BFLOAT16 = {"precision": "bfloat16", "recompute": True}
STEPS = 5


def train(
    store: Path, teacher: Path, init: Path, changes: dict[str, Any], **options: object
) -> None:
    """Train all five steps, one checkpoint at step 2 and one at the end."""
    kept = open_store(str(store))
    whole = order(
        teacher, init, kept, train=TRAIN | changes, checkpoint_every=2, eval_every=STEPS, keep=9
    )
    for _ in Training(whole, kept, **options).steps():  # type: ignore[arg-type]
        pass


def process(
    rank: int,
    port: int,
    store: Path,
    teacher: Path,
    init: Path,
    sharded: bool,
    changes: dict[str, Any],
) -> None:
    """One of two processes."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2"
    )
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    train(store, teacher, init, changes, rank=rank, world=2, sharded=sharded)
    distributed.destroy_process_group()


def two(store: Path, teacher: Path, init: Path, changes: dict[str, Any], *, sharded: bool) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(process, (port, store, teacher, init, sharded, changes), nprocs=2)


def checkpoint(store: Path, step: int = STEPS) -> Checkpoint:
    return Checkpoints(open_store(str(store)), "qad/tiny-0", "tiny-0").read(step)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "changes"), [("Q4_0", {}), ("NVFP4", {}), ("Q4_0", BFLOAT16), ("NVFP4", BFLOAT16)]
)
def test_two_processes_come_to_what_one_comes_to(
    tmp_path: Path, student: str, changes: dict[str, Any]
) -> None:
    torch.set_num_threads(1)
    teacher = tiny_teacher(tmp_path, layers=1)
    init = tiny_nvfp4(teacher) if student == "NVFP4" else tiny_init(teacher)
    train(tmp_path / "one", teacher, init, changes)
    alone = checkpoint(tmp_path / "one")
    for name, sharded in (("whole", False), ("spread", True)):
        two(tmp_path / name, teacher, init, changes, sharded=sharded)
        found = checkpoint(tmp_path / name)
        for key, tensor in alone.weights.items():
            # Sums in another order, which AdamW's first steps, as long as the rate, may turn round.
            assert torch.allclose(found.weights[key], tensor, rtol=0, atol=2e-5), (name, key)
        for key, tensor in alone.optimizer.items():
            assert torch.allclose(found.optimizer[key], tensor, rtol=1e-2, atol=1e-7), (name, key)
        for ours, theirs in zip(found.progressed.looks, alone.progressed.looks, strict=True):
            assert ours.kld == pytest.approx(theirs.kld, rel=1e-4)

    # Killed after step 2, the spread ones end in the same bits.
    for step in (4, 5):
        for path in (tmp_path / "spread/qad/tiny-0/checkpoints" / f"{step:08d}").iterdir():
            path.unlink()
    before = found
    two(tmp_path / "spread", teacher, init, changes, sharded=True)
    after = checkpoint(tmp_path / "spread")
    assert all(torch.equal(after.weights[key], each) for key, each in before.weights.items())
    assert all(torch.equal(after.optimizer[key], each) for key, each in before.optimizer.items())


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        ({"global_batch": 3}, "3 chunks cannot be dealt out evenly to 2 processes"),
        ({"global_batch": 4, "micro_batch": 4}, "a multiple of 8"),
        ({"global_batch": 4, "train_head": True}, "the head stays whole"),
    ],
)
def test_what_spread_models_cannot_do_is_refused(
    tmp_path: Path, train: dict[str, object], reason: str
) -> None:
    teacher = tiny_teacher(tmp_path, layers=1)
    store = open_store(str(tmp_path / "store"))
    whole = order(teacher, tiny_init(teacher), store, train=train)
    with pytest.raises(UserError, match=reason):
        Training(whole, store, world=2, sharded=True)
