"""What a training process is told, and when it is done; without torch, for all to read."""

from __future__ import annotations

from dataclasses import dataclass

from kldcloud.pipeline.tasks import ModelRef
from kldcloud.qad.batches import Batches
from kldcloud.qad.looks import Progressed
from kldcloud.qad.training_tokens import KeptTokens, Tokens
from kldcloud.spec.qad_job import TrainSpec


@dataclass(frozen=True, slots=True)
class TrainingOrder:
    """All that a training process is told.

    Attributes:
        run: the run's id.
        prefix: of the run's keys in the store.
        teacher: a GGUF, wherever a process is.
        init: a quantised GGUF of it.
        tokens: the training chunks, in the store.
        heldout: int32 [m, context], those that are looked at on the way.
        train: how.
        eval_every: steps between two looks.
        checkpoint_every: steps between two checkpoints.
        keep: checkpoints kept, beside the best one.
        threads: of one process.
        activations: whether the inputs of an NVFP4 student's matrices are NVFP4 too.
    """

    run: str
    prefix: str
    teacher: ModelRef
    init: ModelRef
    tokens: KeptTokens
    heldout: Tokens
    train: TrainSpec
    eval_every: int
    checkpoint_every: int
    keep: int
    threads: int
    activations: bool = False

    @property
    def batches(self) -> Batches:
        train = self.train
        return Batches(self.tokens.chunks, train.global_batch, train.epochs, train.seed)

    @property
    def tokens_a_step(self) -> int:
        """Tokens of a whole step, over all processes."""
        return self.train.global_batch * self.tokens.context


def is_over(progressed: Progressed, order: TrainingOrder) -> bool:
    """Whether there is nothing left to train: all steps are done, or no step promises any gain."""
    train, best = order.train, progressed.best
    if progressed.step >= order.batches.steps:
        return True
    if best is None:
        return False
    if progressed.step == 0:
        return train.skip_below is not None and best.kld < train.skip_below
    since = [each for each in progressed.looks if each.step > best.step]
    return train.patience != "never" and len(since) >= train.patience
