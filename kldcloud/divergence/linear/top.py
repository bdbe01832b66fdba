"""The most probable tokens of some rows, from hidden states and a head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from kldcloud.divergence.kernel import NO_TOKEN
from kldcloud.divergence.linear.side import LinearSide, exact_products
from kldcloud.divergence.linear.to_host import OnTheWay
from kldcloud.divergence.top_tokens import TOP, TopTokens

COLUMNS: Final = 32768
"""Of a tile. Rows are few here (32 of a chunk), so reading the head is what takes time."""

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


def linear_top_tokens(
    side: LinearSide, rows: Tensor, *, vocabulary: int | None = None
) -> TopTokens:
    """What `top_tokens.top_of_logits` says of some rows' logits, without those logits.

    Args:
        side: n rows.
        rows: int64, which of them.
        vocabulary: V, where the head is padded beyond it.

    Raises:
        FormatError: if the side's tensors do not fit each other, or a vocabulary of V.
    """
    return begin_top_tokens(side, rows, vocabulary=vocabulary).result()


@torch.no_grad()
def begin_top_tokens(side: LinearSide, rows: Tensor, *, vocabulary: int | None = None) -> TopsBegun:
    """Give a GPU all the work of `linear_top_tokens`, and do not wait for it."""
    side = side.checked("model's", vocabulary).select(rows).ready()
    best: list[Tensor] = []
    masses: list[Tensor] = []
    with exact_products():
        for start in range(0, side.vocabulary, COLUMNS):
            logits = side.logits(start, min(start + COLUMNS, side.vocabulary))
            masses.append(logits.logsumexp(-1).double())
            keys = _keys(logits, start)
            best.append(keys.topk(min(TOP, keys.shape[1]), -1).values)
    log_mass = torch.stack(masses, -1).logsumexp(-1, keepdim=True)
    keys = torch.cat(best, -1)
    keys = keys.topk(min(TOP, keys.shape[1]), -1).values
    tokens, logits = _unpacked(keys)
    probabilities = (logits.double() - log_mass).exp().float()
    missing = (0, TOP - keys.shape[1])
    pad = torch.nn.functional.pad
    return TopsBegun(
        OnTheWay(pad(tokens, missing, value=NO_TOKEN)), OnTheWay(pad(probabilities, missing))
    )


def _keys(logits: Tensor, start: int) -> Tensor:
    """int64 of logits and tokens, which order as the logits do, the first token of equals first.

    `topk` promises no order among equals; of these numbers no two are equal. The bits of a positive
    float32 order as integers do, those of a negative one the other way round.
    """
    bits = (logits + 0.0).view(torch.int32)  # no negative zero, which would equal the positive one
    ordered = torch.where(bits < 0, bits ^ _SIGN, bits).long()
    tokens = torch.arange(start, start + logits.shape[1], device=logits.device)
    return (ordered << _INDEX_BITS) - tokens


def _unpacked(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens, int32, and logits that keys were made of."""
    ordered = (keys + ((1 << _INDEX_BITS) - 1)) >> _INDEX_BITS
    tokens = (ordered << _INDEX_BITS) - keys
    bits = ordered.int()
    return tokens.int(), torch.where(bits < 0, bits ^ _SIGN, bits).view(torch.float32)
