"""The most probable tokens of some rows, from hidden states and a head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from kldcloud.divergence.kernel import NO_TOKEN
from kldcloud.divergence.linear.side import LinearSide, exact_products
from kldcloud.divergence.linear.to_host import OnTheWay
from kldcloud.divergence.top_tokens import TOP, TopTokens

_COLUMNS: Final = 32768
"""Of a product: what is made of the head for it is no copy of it all."""
_STRETCH: Final = 64
_INDEX_BITS: Final = 32
_SIGN: Final = 0x7FFFFFFF


@dataclass(frozen=True, slots=True, eq=False)
class TopsBegun:
    """Top tokens that a GPU may still be at: int32 and float32 [n, TOP]."""

    tokens: OnTheWay
    probabilities: OnTheWay

    def result(self) -> TopTokens:
        """Wait for them."""
        return TopTokens(self.tokens.array(), self.probabilities.array())


@torch.no_grad()
def begin_top_tokens(
    side: LinearSide, rows: Tensor, log_mass: Tensor, *, vocabulary: int | None = None
) -> TopsBegun:
    """Begin what `top_tokens.top_of_logits` says of a few rows, of which all logits are made.

    Args:
        side: n rows.
        rows: int64 [k], which of them.
        log_mass: float64 [n], log-sum-exp of all rows' logits.
        vocabulary: V, where the head is padded beyond it.

    Raises:
        FormatError: if the side's tensors do not fit each other, or a vocabulary of V.
    """
    side = side.checked("model's", vocabulary).select(rows).ready()
    logits = side.weight.new_empty(side.rows, side.vocabulary, dtype=torch.float32)
    with exact_products():
        for start in range(0, side.vocabulary, _COLUMNS):
            stop = min(start + _COLUMNS, side.vocabulary)
            side.logits(start, stop, logits[:, start:stop])
    keys = _largest(logits)
    tokens, best = _unpacked(keys)
    probabilities = (best.double() - log_mass[rows, None]).exp().float()
    missing = (0, TOP - keys.shape[1])
    return TopsBegun(
        OnTheWay(pad(tokens, missing, value=NO_TOKEN)), OnTheWay(pad(probabilities, missing))
    )


def _largest(logits: Tensor) -> Tensor:
    """Keys of the `TOP` largest of each row, the largest first.

    They are in the `TOP` stretches with the largest maxima: any other logit has that many above it.
    """
    vocabulary = logits.shape[1]
    cut = pad(logits, (0, -vocabulary % _STRETCH), value=-torch.inf)
    cut = cut.reshape(len(logits), -1, _STRETCH)
    best = _keys(cut.amax(-1), torch.arange(cut.shape[1], device=cut.device))
    stretches, _ = _unpacked(best.topk(min(TOP, cut.shape[1]), -1).values)
    chosen = stretches.long()[..., None]
    tokens = (chosen * _STRETCH + torch.arange(_STRETCH, device=cut.device)).flatten(1)
    keys = _keys(cut.gather(1, chosen.expand(-1, -1, _STRETCH)).flatten(1), tokens)
    return keys.topk(min(TOP, vocabulary), -1).values


def _keys(logits: Tensor, places: Tensor) -> Tensor:
    """int64 of logits and their places, ordered as logits are, the first place of equals first.

    `topk` promises no order among equals; of these numbers no two are equal. The bits of a positive
    float32 order as integers do, those of a negative one the other way round.
    """
    bits = (logits + 0.0).view(torch.int32)  # no negative zero, which would equal the positive one
    ordered = torch.where(bits < 0, bits ^ _SIGN, bits).long()
    return (ordered << _INDEX_BITS) - places


def _unpacked(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Places, int32, and logits that keys were made of."""
    ordered = (keys + ((1 << _INDEX_BITS) - 1)) >> _INDEX_BITS
    places = (ordered << _INDEX_BITS) - keys
    bits = ordered.int()
    return places.int(), torch.where(bits < 0, bits ^ _SIGN, bits).view(torch.float32)
