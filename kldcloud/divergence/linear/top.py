"""The most probable tokens of some rows, from hidden states and a head, tile by tile."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from kldcloud.divergence.kernel import NO_TOKEN
from kldcloud.divergence.linear.side import LinearSide, exact_products
from kldcloud.divergence.top_tokens import TOP, TopTokens

COLUMNS: Final = 32768
"""Of a tile. Rows are few here (32 of a chunk), so reading the head is what takes time."""


@torch.no_grad()
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
    side = side.checked("model's", vocabulary).select(rows).ready()
    device = side.weight.device
    best = torch.full((side.rows, TOP), -torch.inf, device=device)
    tokens = torch.full((side.rows, TOP), NO_TOKEN, dtype=torch.int64, device=device)
    log_masses = []
    with exact_products():
        for start in range(0, side.vocabulary, COLUMNS):
            logits = side.logits(start, min(start + COLUMNS, side.vocabulary))
            log_masses.append(logits.logsumexp(-1).double())
            here = torch.arange(start, start + logits.shape[1], device=device)
            best, tokens = _largest(
                torch.cat([best, logits], -1),
                torch.cat([tokens, here.expand(side.rows, -1)], -1),
            )
    log_mass = torch.stack(log_masses, -1).logsumexp(-1, keepdim=True)
    probabilities = (best.double() - log_mass).exp().float()
    return TopTokens(tokens.cpu().numpy().astype(np.int32), probabilities.cpu().numpy())


def _largest(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The `TOP` largest of each row, the first of equals first (which `topk` does not promise)."""
    best, found = [], []
    for _ in range(TOP):
        value, at = logits.max(-1, keepdim=True)
        best.append(value)
        found.append(tokens.gather(-1, at).where(value > -torch.inf, NO_TOKEN))
        logits.scatter_(-1, at, -torch.inf)
    return torch.cat(best, -1), torch.cat(found, -1)
