"""What one training process does, and how those who wait for it learn how far it is.

`progress.json` in the run's folder is for people (see `progress_file`); `refused.json` is the error
that ended training, where trying again would end the same way.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from kldcloud.errors import EngineError, KldcloudError, UserError
from kldcloud.qad.progress_file import read_record
from kldcloud.staging.stage import canonical_json
from kldcloud.store import open_store
from kldcloud.store.base import Store

if TYPE_CHECKING:
    from kldcloud.qad.training_order import TrainingOrder

REFUSED: Final = "refused.json"
_MOST_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Refusal:
    """The error that ended training.

    Attributes:
        message: what happened.
        hint: the next step.
        correctable: whether a person can correct it, which the exit code says.
    """

    message: str
    hint: str | None
    correctable: bool = False


def train_process(order: TrainingOrder, store: str, rank: int, world: int, device: str) -> None:
    """One process of a training run, from its last checkpoint to the end.

    Args:
        order: what to do.
        store: URI of where checkpoints are, and models that are not on this machine.
        rank: which process this is.
        world: how many there are.
        device: where its models go.

    Raises:
        KldcloudError: noted in the store first; a process that starts after that does nothing.
    """
    import torch

    from kldcloud.qad.in_sight import in_sight
    from kldcloud.qad.training import Training

    kept = open_store(store)
    if kept.size(f"{order.prefix}/{REFUSED}") is not None:
        return
    torch.set_num_threads(order.threads)
    try:
        # On CPUs, where models are small, whole ones need no traffic in the forward pass.
        sharded = world > 1 and device != "cpu"
        with in_sight(order, kept) if rank == 0 else nullcontext(Training.steps) as steps:
            training = Training(order, kept, rank=rank, world=world, device=device, sharded=sharded)
            for _ in steps(training):
                pass
    except KldcloudError as error:
        refusal = Refusal(error.message, error.hint, isinstance(error, UserError))
        # Where even this cannot be written, Ray's own report has to do.
        with suppress(KldcloudError):
            kept.write_new(f"{order.prefix}/{REFUSED}", canonical_json(asdict(refusal)))
        raise


def forget_refusal(store: Store, prefix: str) -> None:
    """Let training be tried again."""
    store.delete(f"{prefix}/{REFUSED}")


def read_refusal(store: Store, prefix: str) -> Refusal | None:
    """What ended training; None if nothing did, or what did is unreadable."""
    return read_record(store, f"{prefix}/{REFUSED}", Refusal, limit=_MOST_BYTES)


def raise_refusal(store: Store, prefix: str) -> None:
    """Raise what ended training, if it was refused.

    Raises:
        UserError: in the words of the process, if a person can correct it.
        EngineError: in its words, if not.
    """
    found = read_refusal(store, prefix)
    if found is not None:
        kind = UserError if found.correctable else EngineError
        raise kind(found.message, hint=found.hint)
