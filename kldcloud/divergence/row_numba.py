"""Exact statistics of one position in one pass over the vocabulary (numba).

For base probability p, candidate probability q and u = ln(q/p) up to a constant per row, the sums

    P = sum p,  S = sum p u,  F = sum p (e^u - 1 - u)

give, with eps = (F + S) / P,

    KL(p||q) = F / P - (eps - log(1 + eps)),

in which nothing large cancels: F has only positive terms, and a wrong guess of the constant
changes eps only to second order. So neither normaliser is needed beforehand, one pass is enough,
and the error against float64 stays below 2e-8 nats where the textbook sum p (ln p - ln q) in
float32 has 1e-6. Likewise the reverse divergence from R = sum p (u e^u - e^u + 1), and the entropy
of the base from E = sum p log2 p.

Exponentials are 2^x = 2^k 2^f by a polynomial in f (near-minimax on [-1/2, 1/2], relative error
5e-9 before rounding); all logits are anchored at the base's top token. Blocks accumulate in
float32 over vector lanes, rows in float64 over blocks.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from kldcloud.divergence.vector_math import (
    add_lanes32,
    at_least32,
    fused32,
    max32,
    min32,
    multiply_add32,
    scale32,
)

f4 = np.float32
f8 = np.float64  # not float(): to numba that of a float32 is a float32

BLOCK = 2048
"""Columns a block: float32 sums stay short, and the block's inputs stay in the first cache."""

ZERO = f4(0)
ONE = f4(1)
MAGIC = f4(12582912.0)
"""1.5 * 2**23: adding it leaves round(x) in the low mantissa bits."""
LOG2E = f4(math.log2(math.e))
LN2 = f4(math.log(2))
LN2_64 = math.log(2)
LOG2E_OF_F4 = float(LOG2E)
"""log2(e) as the float32 loops see it: rows are put together with the same constant."""

P1, P2, P3, P4, P5, P6 = (
    f4(0.6931471880262289),
    f4(0.240226507605681),
    f4(0.05550357114218974),
    f4(0.00961808255727553),
    f4(0.0013390863364960348),
    f4(0.0001545316294658602),
)
"""(2^f - 1) / f, degree 5."""

Q2, Q3, Q4, Q5, Q6, Q7 = (
    f4(0.24022650760568123),
    f4(0.05550410871460066),
    f4(0.0096180825572777),
    f4(0.0013333522307596515),
    f4(0.0001545316294582739),
    f4(1.5290948555456547e-05),
)
"""(2^f - 1 - f ln 2) / f^2, degree 5: e^u - 1 - u without cancellation."""

LOWEST_BASE = f4(-100.0)
"""log2 below which a base probability counts as 2^-100 (it weighs nothing, q stays exact)."""
LOWEST_RATIO = f4(-120.0)
"""log2 of the smallest q/p that is told apart; beyond it float32 exponents run out."""
HIGHEST_RATIO = 25.0
"""log2 of the largest q (relative to q at the base's top) that the float32 pass can hold."""
WEIGHTLESS_RATIO = f4(50.0)
"""log2 of q/p up to which q is too small, where p counts as 2^-100, for p itself to matter."""

STATISTICS = 5
"""Columns of the kernels' float64 output: KLD, reverse KLD, NLL, base NLL, base entropy."""


@njit(nogil=True, error_model="numpy", cache=True, inline="always")
def entry_terms(x, t, c0):
    """What one entry adds to the sums: p, v, phi, R's factor, and v before it is bounded.

    Args:
        x: float32, the candidate's logit.
        t: float32, log2 of the base's probability, relative to its top.
        c0: float32, the candidate's anchor in log2 units.
    """
    tm = t + MAGIC
    f = t - (tm - MAGIC)
    p = fused32(fused32(fused32(fused32(fused32(P6, f, P5), f, P4), f, P3), f, P2), f, P1)
    p = scale32(fused32(p, f, ONE), tm)
    ratio = fused32(x, LOG2E, -c0) - t
    v = at_least32(ratio, LOWEST_RATIO)
    vm = v + MAGIC
    g = v - (vm - MAGIC)
    q = fused32(fused32(fused32(fused32(fused32(Q7, g, Q6), g, Q5), g, Q4), g, Q3), g, Q2)
    s = scale32(ONE, vm)
    sg = s * g
    phi = fused32(sg * g, q, fused32(sg - v, LN2, s - ONE))
    u = v * LN2
    return p, v, phi, fused32(u, u + phi, -phi), ratio


@njit(nogil=True, error_model="numpy", cache=True)
def _logits_block(x, b, c0, b0):
    """Sums over one block: candidate logits x, base logits b, anchors c0 and b0 (log2 units)."""
    p_sum = s_sum = f_sum = e_sum = r_sum = ratio_min = ratio_max = ZERO
    x_max = x[0]
    for i in range(x.shape[0]):
        t = max32(fused32(b[i], LOG2E, -b0), LOWEST_BASE)
        p, v, phi, r, ratio = entry_terms(x[i], t, c0)
        p_sum = add_lanes32(p_sum, p)
        s_sum = multiply_add32(s_sum, p, v)
        f_sum = multiply_add32(f_sum, p, phi)
        e_sum = multiply_add32(e_sum, p, t)
        r_sum = multiply_add32(r_sum, p, r)
        ratio_min = min32(ratio_min, ratio)
        ratio_max = max32(ratio_max, ratio)
        x_max = max32(x_max, x[i])
    return p_sum, s_sum, f_sum, e_sum, r_sum, ratio_min, ratio_max, x_max


@njit(nogil=True, error_model="numpy", cache=True)
def too_broken(ratio_min, f, r, x_max, c0):
    """Whether a candidate left the range of the float32 pass, or has a logit that is not finite."""
    return (
        not ratio_min > LOWEST_RATIO
        or not math.isfinite(f)
        or not math.isfinite(r)
        or not f8(x_max) * LOG2E_OF_F4 - f8(c0) <= HIGHEST_RATIO
    )


@njit(nogil=True, error_model="numpy", cache=True)
def _far_below_has_weight(x, b, c0, b0):
    """Whether the candidate believes in a token that the base puts below LOWEST_BASE.

    The reverse divergence is then about how far below.
    """
    for i in range(x.shape[0]):
        ratio = fused32(x[i], LOG2E, -c0) - LOWEST_BASE
        if ratio > WEIGHTLESS_RATIO and fused32(b[i], LOG2E, -b0) < LOWEST_BASE:
            return True
    return False


@njit(nogil=True, error_model="numpy", cache=True)
def all_finite(x):
    """Whether no entry is NaN or infinite."""
    finite = True
    for i in range(x.shape[0]):
        finite &= math.isfinite(x[i])
    return finite


@njit(nogil=True, error_model="numpy", cache=True)
def _block_max(x):
    largest = x[0]
    for i in range(x.shape[0]):
        largest = max32(largest, x[i])
    return largest


@njit(nogil=True, error_model="numpy", cache=True)
def first_maximum(x):
    """First index of the largest of a float32 row."""
    largest = x[0]
    start = 0
    for at in range(0, x.shape[0], BLOCK):
        here = _block_max(x[at : at + BLOCK])
        if here > largest:
            largest = here
            start = at
    for i in range(start, x.shape[0]):
        if x[i] == largest:
            return i
    return 0


@njit(nogil=True, error_model="numpy", cache=True)
def _code_block_max(c):
    largest = np.uint16(0)
    for i in range(c.shape[0]):
        largest = c[i] if c[i] > largest else largest
    return largest


@njit(nogil=True, error_model="numpy", cache=True)
def first_top_code(c):
    """First index of the largest code of a row."""
    largest = -1
    start = 0
    for at in range(0, c.shape[0], BLOCK):
        here = int(_code_block_max(c[at : at + BLOCK]))
        if here > largest:
            largest = here
            start = at
        if largest == 65535:
            break
    for i in range(start, c.shape[0]):
        if int(c[i]) == largest:
            return i
    return 0


@njit(nogil=True, error_model="numpy", cache=True)
def logits_row(x, b, token, out):
    """One position from base logits; fills `out` (see STATISTICS), returns (top, base top).

    A top of -1 says that a candidate logit is not finite.
    """
    n = x.shape[0]
    base_top = first_maximum(b)
    c0 = x[base_top] * LOG2E
    b0 = b[base_top] * LOG2E
    p = s = f = e = r = 0.0
    ratio_min = ratio_max = ZERO
    x_max = x[0]
    start = 0
    for at in range(0, n, BLOCK):
        sums = _logits_block(x[at : at + BLOCK], b[at : at + BLOCK], c0, b0)
        p += sums[0]
        s += sums[1]
        f += sums[2]
        e += sums[3]
        r += sums[4]
        ratio_min = min32(ratio_min, sums[5])
        ratio_max = max32(ratio_max, sums[6])
        if sums[7] > x_max:
            x_max = sums[7]
            start = at
    broken = too_broken(ratio_min, f, r, x_max, c0)
    if not broken and ratio_max > WEIGHTLESS_RATIO:
        broken = _far_below_has_weight(x, b, c0, b0)
    if broken and not all_finite(x):
        return -1, base_top
    top = start
    while x[top] != x_max:
        top += 1
    if broken:
        _logits_row_in_double(x, b, token, x_max, b[base_top], out)
        return top, base_top
    s *= LN2_64
    eps = (f + s) / p
    log_p = math.log(p)
    out[0] = f / p - (eps - math.log1p(eps))
    out[1] = (r / p + eps) / (1.0 + eps) - math.log1p(eps)
    out[2] = (f8(c0) - f8(x[token]) * LOG2E_OF_F4) * LN2_64 + log_p + math.log1p(eps)
    out[3] = (f8(b0) - f8(b[token]) * LOG2E_OF_F4) * LN2_64 + log_p
    out[4] = log_p - LN2_64 * e / p
    return top, base_top


@njit(nogil=True, error_model="numpy", cache=True)
def _logits_row_in_double(x, b, token, x_max, b_max, out):
    """The textbook sums in float64, for candidates too broken for the float32 pass."""
    q_sum = p_sum = 0.0
    for i in range(x.shape[0]):
        q_sum += math.exp(f8(x[i]) - f8(x_max))
        p_sum += math.exp(f8(b[i]) - f8(b_max))
    lse_q = f8(x_max) + math.log(q_sum)
    lse_p = f8(b_max) + math.log(p_sum)
    kld = reverse = entropy = 0.0
    for i in range(x.shape[0]):
        lq = f8(x[i]) - lse_q
        lp = f8(b[i]) - lse_p
        p = math.exp(lp)
        kld += p * (lp - lq)
        reverse += math.exp(lq) * (lq - lp)
        entropy -= p * lp
    out[0] = kld
    out[1] = reverse
    out[2] = lse_q - f8(x[token])
    out[3] = lse_p - f8(b[token])
    out[4] = entropy
