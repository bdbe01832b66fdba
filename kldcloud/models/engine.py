"""The engine seam: what stands between a model reference and logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from kldcloud.divergence.linear.side import LinearSide

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class ChunkOutput:
    """What an engine says about the scored positions of one chunk.

    Attributes:
        logits: float32 [rows, V]; valid until the engine has evaluated `Engine.kept` more chunks:
            it may be its buffer.
        hidden: float32 [rows, d] post-final-norm states, if asked for, else None; a copy.
    """

    logits: npt.NDArray[np.float32]
    hidden: npt.NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What cutting chunks and comparing models need to know of a tokenizer."""

    size: int
    add_bos: bool
    bos: int


class Engine(Protocol):
    """A loaded model that evaluates whole chunks of one fixed length.

    What an engine gives is the whole distribution: every logit, or states and a head that they are
    made of. A server that tells the k most probable tokens and the mass of the rest is no engine:
    of such answers only a lower bound of the divergence is known, and no reverse divergence,
    clamped number or exact quantile, so it would need statistics of its own.
    """

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Everything besides model and tokens that moves a logit; part of every stage key."""
        ...

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU does the work, so that the CPU is free meanwhile."""
        ...

    @property
    def kept(self) -> int:
        """Of how many chunks, evaluated one after the other, it keeps the logits: 1 or more.

        After a chunk it may be more than before.
        """
        ...

    def side(self, tokens: Tokens) -> LinearSide | None:
        """States and head of a chunk's scored positions, where they lie on a GPU.

        Args:
            tokens: as for `evaluate`.

        Returns:
            None if this engine has logits alone.
        """
        ...

    def states(self, tokens: Tokens) -> npt.NDArray[np.float32] | None:
        """The states of a chunk's scored positions alone, float32 [rows, d].

        Returns:
            None if leaving out the head saves this engine nothing: `evaluate` has both.
        """
        ...

    def evaluate(self, tokens: Tokens, *, hidden: bool = False) -> ChunkOutput:
        """Logits at a chunk's scored positions.

        Args:
            tokens: int32 [n_ctx], the chunk as the corpus has it; a BOS rule is applied here.
            hidden: also return the states that enter the output head.
        """
        ...

    def close(self) -> None: ...
