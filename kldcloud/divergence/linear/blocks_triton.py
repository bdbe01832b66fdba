"""The sums of a block of logits that a Triton program has in registers; formulas in `stretches`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kldcloud.divergence.linear.stretches import EVEN, ODD

NOWHERE = tl.constexpr(2**31 - 1)
LARGEST = tl.constexpr(torch.finfo(torch.float32).max)

E2, E4, E6, E8, E10 = (tl.constexpr(each) for each in EVEN)
O3, O5, O7, O9 = (tl.constexpr(each) for each in ODD)


@triton.jit
def first_of(x, largest, columns):
    """The first of a block's columns where each row has its largest; 2^31 - 1 if none has."""
    return tl.min(tl.where(x == largest[:, None], columns[None, :], NOWHERE), axis=1)


@triton.jit
def extremes(x, inside):
    """Largest and smallest of each row of a block, NaN for both if an entry is not finite."""
    broken = tl.max((inside & ~(tl.abs(x) <= LARGEST)).to(tl.int32), axis=1) > 0
    high = tl.max(tl.where(inside, x, -LARGEST), axis=1)
    low = tl.min(tl.where(inside, x, LARGEST), axis=1)
    return tl.where(broken, float("nan"), high), tl.where(broken, float("nan"), low)


@triton.jit
def block_sums(b, c, high_b, high_c, inside):
    """P, g and the sums of p phi(u'), q' phi(-u'), p u' and p (b - B) of each row of a block."""
    # -200 is nothing after exp, and its difference is 0.
    b = tl.where(inside, b - high_b[:, None], -200.0)
    c = tl.where(inside, c - high_c[:, None], -200.0)
    p, q = tl.exp(b), tl.exp(c)
    mass_p, mass_q = tl.sum(p, axis=1), tl.sum(q, axis=1)
    weighted = tl.sum(p * b, axis=1)
    # Correctly rounded, so that equal masses give 1; the fast logarithm of 1 need not be 0.
    ratio = tl.math.div_rn(mass_q, mass_p)
    log_ratio = tl.where(ratio == 1.0, 0.0, tl.log(ratio))
    u = c - b - log_ratio[:, None]
    q = q * (1.0 / ratio)[:, None]
    square = u * u
    even = (((E10 * square + E8) * square + E6) * square + E4) * square + E2
    odd = (((O9 * square + O7) * square + O5) * square + O3) * u
    near = square <= 1.0
    forward = tl.where(near, p * square * (even + odd), q - p * (1.0 + u))
    reverse = tl.where(near, q * square * (even - odd), p - q * (1.0 - u))
    forward, reverse = tl.sum(forward, axis=1), tl.sum(reverse, axis=1)
    return mass_p, log_ratio, forward, reverse, tl.sum(p * u, axis=1), weighted


@triton.jit
def store_sums(sums, tops, plane, at, valid, high_b, high_c, low_b, low_c, top_b, top_c,
               mass, log_ratio, forward, reverse, drift, weighted):  # fmt: skip
    """Write one stretch of some rows, in the order of `stretches`' planes."""
    tl.store(sums + at, high_b, mask=valid)
    tl.store(sums + plane + at, high_c, mask=valid)
    tl.store(sums + 2 * plane + at, low_b, mask=valid)
    tl.store(sums + 3 * plane + at, low_c, mask=valid)
    tl.store(sums + 4 * plane + at, mass, mask=valid)
    tl.store(sums + 5 * plane + at, log_ratio, mask=valid)
    tl.store(sums + 6 * plane + at, forward, mask=valid)
    tl.store(sums + 7 * plane + at, reverse, mask=valid)
    tl.store(sums + 8 * plane + at, drift, mask=valid)
    tl.store(sums + 9 * plane + at, weighted, mask=valid)
    tl.store(tops + at, top_b, mask=valid)
    tl.store(tops + plane + at, top_c, mask=valid)
