"""The sums of a tile of logits, in plain PyTorch: what to read first, and what CPUs run."""

from __future__ import annotations

import torch
from torch import Tensor

from kldcloud.divergence.base_rows import CLAMP_NATS
from kldcloud.divergence.linear.encoding import Encoding, LlamaSums
from kldcloud.divergence.linear.stretches import (
    BASE,
    CANDIDATE,
    DRIFT,
    FORWARD,
    HIGH,
    LOW,
    MASS,
    RATIO,
    REVERSE,
    WEIGHTED,
    Stretches,
    bregman_sums,
)

BUFFERS = 10
"""Tensors of a tile's size that `summarise` has at once, two of them logits (measured)."""


def summarise(
    b: Tensor, c: Tensor, start: int, tokens: Tensor, picked: Tensor, out: Stretches
) -> None:
    """A tile as one stretch; see `stretches` for the formulas.

    Args:
        b: float32 ``[n, columns]``, base logits; destroyed.
        c: the same of the candidate; destroyed.
        start: token of the first column.
        tokens: int32 ``[n]``, the next tokens.
        picked: float32 ``[2, n]``, receives the next tokens' logits where they are among these.
        out: of one stretch, filled.
    """
    here = tokens.long() - start
    inside = (here >= 0) & (here < b.shape[1])
    here = here.clamp(0, b.shape[1] - 1)[:, None]
    sums, tops = out.sums[..., 0], out.tops[..., 0]
    for side, x in ((BASE, b), (CANDIDATE, c)):
        high, top = x.max(-1)
        low = x.amin(-1)
        if side == BASE:
            sums[LOW] = low
        sums[HIGH + side] = torch.where(low.isfinite(), high, torch.nan)
        tops[side] = top + start
        picked[side] = torch.where(inside, x.gather(-1, here)[:, 0], picked[side])
        x.sub_(high[:, None])
    u = c - b
    p = b.exp()
    sums[WEIGHTED] = b.mul_(p).sum(-1)
    q = c.exp_()
    mass = p.sum(-1)
    ratio = q.sum(-1) / mass
    sums[MASS], sums[RATIO] = mass, ratio.log()
    u.sub_(sums[RATIO][:, None])
    q.div_(ratio[:, None])
    sums[FORWARD], sums[REVERSE] = bregman_sums(p, q, u)
    sums[DRIFT] = u.mul_(p).sum(-1)


def llama_sums(b: Tensor, c: Tensor, start: int, encoding: Encoding) -> LlamaSums:
    """llama.cpp's sums of a tile, each float32 operation rounded by itself as in `row_numpy`.

    Args:
        b: float32 ``[n, columns]``, base logits; destroyed.
        c: the same of the candidate; destroyed.
        start: token of the first column.
        encoding: of the rows.
    """
    b.sub_(encoding.smallest[:, None])
    below = b <= 0
    log_p = b.mul_(encoding.inverse[:, None]).round_().masked_fill_(below, 0)
    log_p.mul_(encoding.scale[:, None]).add_(encoding.low[:, None])
    high, top = log_p.max(-1, keepdim=True)
    terms = torch.sub(log_p, c, out=c).add_(encoding.log_mass[:, None])
    terms.mul_(log_p.double().exp_().float())
    terms.masked_fill_(log_p <= -CLAMP_NATS, 0)
    kld = terms.sum(-1, keepdim=True, dtype=torch.float64)
    return LlamaSums(kld, high, (top + start).int())
