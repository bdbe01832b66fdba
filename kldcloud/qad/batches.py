"""Which chunks a training step sees: an order that seed and epoch decide, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from kldcloud.errors import UserError


@dataclass(frozen=True, slots=True)
class Batches:
    """The steps of a training run.

    Attributes:
        chunks: chunks of the training text.
        global_batch: chunks a step.
        epochs: passes over the text; what does not fill a step at the end of one is left out.
        seed: of the order.
    """

    chunks: int
    global_batch: int
    epochs: int
    seed: int

    def __post_init__(self) -> None:
        if self.chunks < self.global_batch:
            raise UserError(
                f"the training text has {self.chunks} chunks, fewer than one step of"
                f" {self.global_batch}",
                hint="give a longer text, a shorter context or a smaller global_batch",
            )

    @property
    def an_epoch(self) -> int:
        """Steps of one pass."""
        return self.chunks // self.global_batch

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.epochs * self.an_epoch

    def step(self, number: int) -> Sequence[int]:
        """Indices of a step's chunks; each pass has a permutation of its own."""
        epoch, at = divmod(number, self.an_epoch)
        order = _order(self.seed, epoch, self.chunks)
        chosen: list[int] = order[at * self.global_batch :][: self.global_batch].tolist()
        return chosen


@lru_cache(maxsize=1)
def _order(seed: int, epoch: int, chunks: int) -> npt.NDArray[np.int64]:
    """int64 [chunks]; kept, as millions of chunks take as long as a small step."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(chunks)
