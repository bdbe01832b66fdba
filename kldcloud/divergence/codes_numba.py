"""Exact statistics of one position whose base is 16-nat codes (numba).

Entries with a code above 0 are told apart; those with code 0 lie 16 nats or more below the top and
count as one: the chain rule of the divergence then needs only their total under base and candidate,

    KL(p||q) = (1 - T) KL(kept) + T ln(T / Q) + (1 - T) ln((1 - T) / (1 - Q)),

with T and Q the tail's mass under base and candidate. What this leaves out, T times the divergence
inside the tail, makes it a lower bound; T is around 1e-3.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from kldcloud.divergence.row_numba import (
    BLOCK,
    HIGHEST_RATIO,
    LN2_64,
    LOG2E,
    LOG2E_OF_F4,
    _codes_block,
    first_maximum,
    first_top_code,
)

f4 = np.float32


@njit(nogil=True, error_model="numpy", cache=True)
def binary_divergence(t, q):
    """t ln(t/q) + (1-t) ln((1-t)/(1-q)) for probabilities of a tail, in nats."""
    rest = (1.0 - t) * (math.log1p(-t) - math.log1p(-q)) if t < 1.0 else 0.0
    if t <= 0.0:
        return rest
    return t * math.log(t / q) + rest


@njit(nogil=True, error_model="numpy", cache=True)
def codes_row(x, row, token, tail, target, has_extras, out):
    """One position from codes; fills `out` as `logits_row` does, returns (top, base top by codes).

    Args:
        x: float32 [V] candidate logits.
        row: uint16 [4 + V (+1)] the base's row.
        token: the next token.
        tail: the base's exact mass on code 0 (has_extras), else ignored.
        target: the base's exact log-probability of the next token (has_extras), else ignored.
        has_extras: whether tail and target are known.
        out: float64 [5].
    """
    n = x.shape[0]
    header = row[:4].view(np.float32)
    scale = header[0]
    low = header[1]
    c = row[4 : 4 + n]
    base_top = first_top_code(c)
    if scale == f4(0):
        return _flat_row(x, token, target, has_extras, out), 0
    c_top = f4(c[base_top])
    a = scale * LOG2E
    c0 = x[base_top] * LOG2E
    p = s = f = e = r = x_sum = q_tail = 0.0
    x_max = x[0]
    start = 0
    for at in range(0, n, BLOCK):
        sums = _codes_block(x[at : at + BLOCK], c[at : at + BLOCK], c0, c_top, a)
        p += sums[0]
        s += sums[1]
        f += sums[2]
        e += sums[3]
        r += sums[4]
        x_sum += sums[5]
        q_tail += sums[7]
        if sums[6] > x_max:
            x_max = sums[6]
            start = at
    if not math.isfinite(x_sum):
        return -1, base_top
    top = start
    while x[top] != x_max:
        top += 1
    kept_log = float(scale) * float(c_top) + float(low)  # log-probability of the top entry
    if not has_extras:
        tail = _tail_of_file(p * math.exp(kept_log), low, c)
        target = float(scale) * float(c[token]) + float(low)
    if float(x_max) * LOG2E_OF_F4 - float(c0) > HIGHEST_RATIO:
        _codes_row_in_double(x, c, scale, token, x_max, tail, target, has_extras, out)
        return top, base_top
    s *= LN2_64
    eps = (f + s) / p
    q_kept = p * (1.0 + eps)
    q = q_kept + q_tail
    share = q_tail / q
    kept = f / p - (eps - math.log1p(eps))
    kept_reverse = (r / p + eps) / (1.0 + eps) - math.log1p(eps)
    kept_entropy = math.log(p) - LN2_64 * e / p
    _join(kept, kept_reverse, kept_entropy, tail, share, has_extras, out)
    out[2] = (float(c0) - float(x[token]) * LOG2E_OF_F4) * LN2_64 + math.log(q)
    out[3] = -target
    return top, base_top


@njit(nogil=True, error_model="numpy", cache=True)
def _join(kept, kept_reverse, kept_entropy, tail, share, has_extras, out):
    """Chain rule over {kept, tail}: fills KLD, reverse KLD and entropy."""
    out[0] = (1.0 - tail) * kept
    out[1] = (1.0 - share) * kept_reverse
    out[4] = (1.0 - tail) * kept_entropy
    if tail > 0.0:
        out[4] -= tail * math.log(tail) + (1.0 - tail) * math.log1p(-tail)
    # A llama.cpp file gives the tail only as a small difference of rounded numbers: between the
    # two masses it would say more about the rounding than about the candidate.
    if has_extras and tail < 1.0:
        if share > 0.0 or tail == 0.0:
            out[0] += binary_divergence(tail, share)
        if tail > 0.0 or share == 0.0:
            out[1] += binary_divergence(share, tail)


@njit(nogil=True, error_model="numpy", cache=True)
def _tail_of_file(kept_mass, low, c):
    """The base's mass on code 0 as a .kld row tells it: what the kept codes leave, if plausible."""
    zeros = 0
    for i in range(c.shape[0]):
        zeros += c[i] == 0
    return min(max(1.0 - kept_mass, 0.0), zeros * math.exp(float(low)))


@njit(nogil=True, error_model="numpy", cache=True)
def _flat_row(x, token, target, has_extras, out):
    """A base row whose logits are all equal: its codes carry nothing, the base is uniform."""
    n = x.shape[0]
    top = first_maximum(x)
    q_sum = 0.0
    mean = 0.0
    for i in range(n):
        q_sum += math.exp(float(x[i]) - float(x[top]))
        mean += float(x[i])
    if not math.isfinite(mean):
        return -1
    lse = float(x[top]) + math.log(q_sum)
    log_n = math.log(n)
    reverse = 0.0
    for i in range(n):
        lq = float(x[i]) - lse
        reverse += math.exp(lq) * (lq + log_n)
    out[0] = lse - mean / n - log_n
    out[1] = reverse
    out[2] = lse - float(x[token])
    out[3] = -target if has_extras else log_n
    out[4] = log_n
    return top


@njit(nogil=True, error_model="numpy", cache=True)
def _codes_row_in_double(x, c, scale, token, x_max, tail, target, has_extras, out):
    """The textbook sums in float64, for candidates too broken for the float32 pass."""
    p_sum = q_kept = q_tail = 0.0
    for i in range(x.shape[0]):
        q = math.exp(float(x[i]) - float(x_max))
        if c[i] > 0:
            p_sum += math.exp(float(scale) * (float(c[i]) - 65535.0))
            q_kept += q
        else:
            q_tail += q
    log_p = math.log(p_sum)
    log_q = math.log(q_kept) if q_kept > 0.0 else -1e300
    kept = reverse = entropy = 0.0
    for i in range(x.shape[0]):
        if c[i] > 0:
            lp = float(scale) * (float(c[i]) - 65535.0) - log_p
            lq = float(x[i]) - float(x_max) - log_q
            p = math.exp(lp)
            kept += p * (lp - lq)
            reverse += math.exp(lq) * (lq - lp)
            entropy -= p * lp
    share = q_tail / (q_kept + q_tail)
    _join(kept, reverse, entropy, tail, share, has_extras, out)
    out[2] = float(x_max) + math.log(q_kept + q_tail) - float(x[token])
    out[3] = -target
