"""What one training process does, and how those who wait for it learn how far it is.

`progress.json` in the run's folder is for people, replaced after every step; `refused.json` is the
error that ended training, where trying again would end the same way.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from kldcloud.errors import EngineError, KldcloudError
from kldcloud.staging.stage import canonical_json, load_json
from kldcloud.store import open_store
from kldcloud.store.base import Store

REFUSED: Final = "refused.json"
PROGRESS: Final = "progress.json"


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """How far training is.

    Attributes:
        step: steps done.
        steps: in all.
        kld: of the last step's tokens, nats; None before the first.
        heldout: the latest look: mean KLD in nats; None before it.
        tokens_per_second: of this launch; None before the first step.
    """

    step: int
    steps: int
    kld: float | None = None
    heldout: float | None = None
    tokens_per_second: float | None = None


def train_process(order: Any, store: str, rank: int, world: int, device: str) -> None:  # noqa: ANN401
    """One process of a training run, from its last checkpoint to the end.

    Args:
        order: a `training.TrainingOrder`; its module imports torch, so this one does not name it.
        store: URI of where checkpoints are.
        rank: which process this is.
        world: how many there are.
        device: where its models go.

    Raises:
        KldcloudError: noted in the store first; a process that starts after that does nothing.
    """
    import torch

    from kldcloud.qad.training import Training

    kept = open_store(store)
    if kept.size(f"{order.prefix}/{REFUSED}") is not None:
        return
    torch.set_num_threads(order.threads)
    try:
        # On CPUs, where models are small, whole ones need no traffic in the forward pass.
        sharded = world > 1 and device != "cpu"
        training = Training(order, kept, rank=rank, world=world, device=device, sharded=sharded)
        told = _Told(kept, order, training.progressed.step) if rank == 0 else None
        for done in training.steps():
            if told is not None:
                told.tell(done)
    except KldcloudError as error:
        facts = {"message": error.message, "hint": error.hint}
        kept.write_new(f"{order.prefix}/{REFUSED}", canonical_json(facts))
        raise


class _Told:
    """Writes progress.json."""

    def __init__(self, store: Store, order: Any, first: int) -> None:  # noqa: ANN401
        self._store, self._order, self._first = store, order, first
        self._started = time.monotonic()
        self._heldout: float | None = None

    def tell(self, done: Any) -> None:  # noqa: ANN401 - a `training.StepDone`
        order = self._order
        if done.look is not None:
            self._heldout = done.look.kld
        tokens = (done.step - self._first) * order.train.global_batch * order.tokens.shape[1]
        now = TrainingProgress(
            done.step,
            order.batches.steps,
            done.kld,
            self._heldout,
            tokens / (time.monotonic() - self._started),
        )
        self._store.write(f"{order.prefix}/{PROGRESS}", canonical_json(asdict(now)))


def read_progress(store: Store, prefix: str) -> TrainingProgress | None:
    """How far a run's training is; None if nothing is known."""
    found = _facts(store, f"{prefix}/{PROGRESS}")
    try:
        return TrainingProgress(**found) if found else None
    except TypeError:
        return None


def forget_refusal(store: Store, prefix: str) -> None:
    """Let training be tried again."""
    store.delete(f"{prefix}/{REFUSED}")


def raise_refusal(store: Store, prefix: str) -> None:
    """Raise what ended training, if it was refused.

    Raises:
        EngineError: in the words of the process.
    """
    found = _facts(store, f"{prefix}/{REFUSED}")
    if found:
        hint = found.get("hint")
        raise EngineError(str(found.get("message")), hint=None if hint is None else str(hint))


def _facts(store: Store, key: str) -> Mapping[str, Any] | None:
    if store.size(key) is None:
        return None
    found = load_json(store, key)
    return found if isinstance(found, dict) else None
