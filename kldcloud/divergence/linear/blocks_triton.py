"""The sums of a block of logits that a Triton program has in registers; formulas in `stretches`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kldcloud.divergence.linear.stretches import EVEN, ODD

LOG2E = tl.constexpr(1.4426950408889634)
NOWHERE = tl.constexpr(2**31 - 1)
LARGEST = tl.constexpr(torch.finfo(torch.float32).max)

E2, E4, E6, E8, E10 = (tl.constexpr(each) for each in EVEN)
O3, O5, O7, O9 = (tl.constexpr(each) for each in ODD)


@triton.jit
def first_of(x, largest, columns):
    """The first of a block's columns where each row has its largest; 2^31 - 1 if none has."""
    return tl.min(tl.where(x == largest[:, None], columns, NOWHERE), axis=1)


@triton.jit
def block_sums(b, c, high_b, high_c):
    """P, g and the sums of p phi(u), q' phi(-u), p u and p (b - B) of each row of a block.

    An entry of -LARGEST on both sides adds nothing to any of them.
    """
    b, c = b - high_b[:, None], c - high_c[:, None]
    p, q = tl.exp2(b * LOG2E), tl.exp2(c * LOG2E)
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
def store_sums(sums, tops, plane, at, valid, high_b, high_c, low, top_b, top_c,
               mass, log_ratio, forward, reverse, drift, weighted):  # fmt: skip
    """Write one stretch of some rows, in the order of `stretches`' planes.

    A base logit that is not finite shows in P, or as the smallest; a candidate's makes the sum of
    p phi(u) infinite or NaN, as a base's may too. So no entry need be looked at for that.
    """
    broken_b = ~(mass <= LARGEST) | (low < -LARGEST)
    broken_c = ~(forward <= LARGEST) & ~broken_b
    tl.store(sums + at, tl.where(broken_b, float("nan"), high_b), mask=valid)
    tl.store(sums + plane + at, tl.where(broken_c, float("nan"), high_c), mask=valid)
    tl.store(sums + 2 * plane + at, low, mask=valid)
    tl.store(sums + 3 * plane + at, mass, mask=valid)
    tl.store(sums + 4 * plane + at, log_ratio, mask=valid)
    tl.store(sums + 5 * plane + at, forward, mask=valid)
    tl.store(sums + 6 * plane + at, reverse, mask=valid)
    tl.store(sums + 7 * plane + at, drift, mask=valid)
    tl.store(sums + 8 * plane + at, weighted, mask=valid)
    tl.store(tops + at, top_b, mask=valid)
    tl.store(tops + plane + at, top_c, mask=valid)
