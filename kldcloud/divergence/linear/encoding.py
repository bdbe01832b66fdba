"""llama.cpp's 16-nat codes of rows that are only ever there tile by tile.

Codes need a row's maximum, minimum and log-sum-exp before the first of them can be made, so the
tool's statistics take a second pass, products and all: twice the time. Formulas as in `row_numpy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kldcloud.divergence.base_rows import CLAMP_NATS
from kldcloud.divergence.linear.stretches import BASE, CANDIDATE, Pieces

_STEPS = 65535


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """What the tool knows of n rows when it makes codes of them and compares; float32 ``[n]``.

    Attributes:
        scale: nats a step.
        inverse: steps a nat; 0 for a row of equal logits.
        smallest: the base logit of code 0.
        low: the log-probability of code 0.
        log_mass: log-sum-exp of the candidate's logits.
    """

    scale: Tensor
    inverse: Tensor
    smallest: Tensor
    low: Tensor
    log_mass: Tensor

    @classmethod
    def of(cls, whole: Pieces) -> Encoding:
        """From what a first pass found, t = 1."""
        high = whole.high[..., 0]
        log_sum = (whole.log_mass[..., 0] - high.double()).float()
        smallest = torch.maximum(whole.low[:, 0], high[BASE] - CLAMP_NATS)
        # By a tensor: a division by a number is a product with its inverse on GPUs.
        scale = (high[BASE] - smallest) / torch.full_like(smallest, _STEPS)
        return cls(
            scale,
            torch.where(scale == 0, 0.0, 1 / scale),
            smallest,
            (smallest - high[BASE]) - log_sum[BASE],
            high[CANDIDATE] + log_sum[CANDIDATE],
        )

    def log_probability(self, logits: Tensor) -> Tensor:
        """Of one base logit a row, ``[n]``, what its code says."""
        code = torch.round(self.inverse * (logits - self.smallest))
        code = torch.where(logits > self.smallest, code, 0.0)
        # Two operations: the tool does not fuse them.
        product = self.scale * code
        return product + self.low


@dataclass(frozen=True, slots=True, eq=False)
class LlamaSums:
    """The tool's sums over t stretches of the vocabulary, for n rows.

    Attributes:
        kld: float64 ``[n, t]``, of the terms above its cut.
        high: float32 ``[n, t]``, the largest log-probability that a code says.
        top: int32 ``[n, t]``, the first token with it.
    """

    kld: Tensor
    high: Tensor
    top: Tensor

    @classmethod
    def empty(cls, rows: int, stretches: int, device: torch.device) -> LlamaSums:
        """Room for so many."""
        kinds = torch.float64, torch.float32, torch.int32
        return cls(*(torch.empty(rows, stretches, dtype=kind, device=device) for kind in kinds))


def add_up(parts: Sequence[LlamaSums]) -> LlamaSums:
    """All stretches as one, t = 1."""
    high, at = torch.cat([part.high for part in parts], -1).max(-1, keepdim=True)
    top = torch.cat([part.top for part in parts], -1).gather(-1, at)
    return LlamaSums(torch.cat([part.kld for part in parts], -1).sum(-1, keepdim=True), high, top)
