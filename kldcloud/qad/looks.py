"""How far training has come, and what the looks at held-out text said on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Look:
    """One evaluation on held-out chunks.

    Attributes:
        step: after so many steps.
        kld: mean KL divergence, nats a token.
        same_top: share of positions where both models put the same token first; None where the
            trainer does not say.
    """

    step: int
    kld: float
    same_top: float | None


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far training has come, beside the tensors.

    Attributes:
        step: steps done.
        looks: all evaluations so far, in order.
    """

    step: int
    looks: tuple[Look, ...]

    @property
    def best(self) -> Look | None:
        """The evaluation that lost least, the first one of equals."""
        return best_of(self.looks)


def best_of(looks: Sequence[Look]) -> Look | None:
    """The evaluation that lost least, the first one of equals; None of none."""
    return min(looks, key=lambda each: each.kld, default=None)
