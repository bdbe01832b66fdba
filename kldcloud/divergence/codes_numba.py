"""Exact statistics of one position whose base is 16-nat codes (numba).

Entries with a code above 0 are told apart; those with code 0 lie 16 nats or more below the top and
count as one: the chain rule of the divergence then needs only their total under base and candidate,

    KL(p||q) = (1 - T) KL(kept) + T ln(T / Q) + (1 - T) ln((1 - T) / (1 - Q)),

with T and Q the tail's mass under base and candidate. What this leaves out, T times the divergence
inside the tail, makes it a lower bound; T is around 1e-3.

Of a llama.cpp file T is known badly, and between the two masses only what any T allows is counted:
nothing, unless the candidate has more on the tail than the codes leave room for.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from kldcloud.divergence.llama_numba import UNKNOWN
from kldcloud.divergence.row_numba import (
    LN2_64,
    LOG2E,
    LOG2E_OF_F4,
    LOWEST_RATIO,
    ZERO,
    all_finite,
    first_maximum,
    first_top_code,
    too_broken,
)
from kldcloud.divergence.strips_numba import STRIP, kept_strip, pack_strip
from kldcloud.divergence.vector_math import min32

f4 = np.float32
f8 = np.float64  # not float(): to numba that of a float32 is a float32

CERTAIN = 0.999
"""Entries that weigh less together than this much of the largest packed one hold no larger one."""
NEARLY_ALL = 0.99
"""A candidate's share of the tail above which the rest comes from a sum, for one minus the share
has too few digits."""
NEXT_TO_NOTHING = 2.0**-80
"""A candidate's mass on the tail, relative to q at the base's top, that float32 may not hold."""
FELT_TAIL = 1e-12
"""A base's mass on the tail below which no candidate's says anything."""


@njit(nogil=True, error_model="numpy", cache=True)
def binary_divergence(t, q):
    """t ln(t/q) + (1-t) ln((1-t)/(1-q)) for probabilities of a tail, in nats."""
    rest = (1.0 - t) * (math.log1p(-t) - math.log1p(-q)) if t < 1.0 else 0.0
    if t <= 0.0:
        return rest
    return t * math.log(t / q) + rest


@njit(nogil=True, error_model="numpy", cache=True)
def _sums(x, c, c0, c_top, a, packed_x, packed_c):
    """All sums of a row, in one stream from memory; packs the entries with a code above 0.

    Returns:
        (P, S, F, E, R and the smallest ratio over packed entries, entries packed, sum of
        2^(x log2 e - c0) over the others, largest x packed, start of its strip).
    """
    p = s = f = e = r = rest = 0.0
    ratio_min = ZERO
    x_max = f4(-np.inf)
    kept = start = 0
    for at in range(0, x.shape[0], STRIP):
        before = kept
        kept, more = pack_strip(
            x[at : at + STRIP], c[at : at + STRIP], c0, packed_x, packed_c, before
        )
        rest += more
        if kept == before:
            continue
        sums = kept_strip(packed_x, packed_c, before, kept, c0, c_top, a)
        p += sums[0]
        s += sums[1]
        f += sums[2]
        e += sums[3]
        r += sums[4]
        ratio_min = min32(ratio_min, sums[5])
        if sums[6] > x_max:
            x_max = sums[6]
            start = at
    return p, s, f, e, r, ratio_min, kept, rest, x_max, start


@njit(nogil=True, error_model="numpy", cache=True)
def codes_row(x, row, token, tail, target, has_extras, packed_x, packed_c, out):
    """One position from codes; fills `out` as `logits_row` does.

    Args:
        x: float32 [V] candidate logits.
        row: uint16 [4 + V (+1)] the base's row.
        token: the next token.
        tail: the base's exact mass on code 0 (has_extras), else ignored.
        target: the base's exact log-probability of the next token (has_extras), else ignored.
        has_extras: whether tail and target are known.
        packed_x: float32 [V + SLACK], receives the logits of entries with a code above 0.
        packed_c: float32 [V + SLACK], receives their codes.
        out: float64 [5].

    Returns:
        (top, base top by codes, entries packed, sum of e^(x - largest x) over the others or
        UNKNOWN). A top of -1 says that a candidate logit is not finite.
    """
    n = x.shape[0]
    header = row[:4].view(np.float32)
    scale = header[0]
    low = header[1]
    c = row[4 : 4 + n]
    base_top = first_top_code(c)
    if scale == f4(0) or c[base_top] == 0:
        return _flat_row(x, token, target, has_extras, out), 0, 0, UNKNOWN
    c_top = f4(c[base_top])
    c0 = x[base_top] * LOG2E
    p, s, f, e, r, ratio_min, kept, q_rest, x_max, top = _sums(
        x, c, c0, c_top, scale * LOG2E, packed_x, packed_c
    )
    broken = not math.isfinite(q_rest + f) or not ratio_min > LOWEST_RATIO
    if broken and not all_finite(x):
        return -1, base_top, kept, UNKNOWN
    unit = math.exp((f8(c0) - f8(x_max) * LOG2E_OF_F4) * LN2_64)
    if q_rest * unit < CERTAIN:
        while x[top] != x_max:
            top += 1
    else:  # The largest may be among those with code 0.
        top = first_maximum(x)
        x_max = x[top]
        unit = UNKNOWN
    kept_log = f8(scale) * f8(c_top) + f8(low)  # log-probability of the top entry
    if not has_extras:
        tail = _tail_of_file(p * math.exp(kept_log), low, n - kept)
        target = f8(scale) * f8(c[token]) + f8(low)
    vanishing = has_extras and tail > FELT_TAIL and q_rest < NEXT_TO_NOTHING
    if broken or vanishing or too_broken(ratio_min, f, r, x_max, c0):
        _codes_row_in_double(x, c, scale, low, token, tail, target, has_extras, out)
        return top, base_top, kept, UNKNOWN
    s *= LN2_64
    eps = (f + s) / p
    q_kept = p * (1.0 + eps)
    q = q_kept + q_rest
    share = q_rest / q
    kept_kld = f / p - (eps - math.log1p(eps))
    kept_reverse = (r / p + eps) / (1.0 + eps) - math.log1p(eps)
    kept_entropy = math.log(p) - LN2_64 * e / p
    log_share = math.log(share) if share > 0.0 else -math.inf
    log_rest = math.log(q_kept / q)
    between = tail if has_extras else _least_between(share, low, scale, n - kept)
    _join(
        kept_kld, kept_reverse, kept_entropy,
        tail, between, share, log_share, log_rest, out,
    )  # fmt: skip
    out[2] = (f8(c0) - f8(x[token]) * LOG2E_OF_F4) * LN2_64 + math.log(q)
    out[3] = -target
    return top, base_top, kept, q_rest * unit if unit > 0.0 else UNKNOWN


@njit(nogil=True, error_model="numpy", cache=True)
def _join(kept, kept_reverse, kept_entropy, tail, between, share, log_share, log_rest, out):
    """Chain rule over {kept, tail}: fills KLD, reverse KLD and entropy.

    Args:
        kept: KLD among the entries with a code above 0.
        kept_reverse: their reverse KLD.
        kept_entropy: their entropy under the base.
        tail: the base's mass on code 0.
        between: the same for the divergence between tail and rest; negative leaves that out.
        share: the candidate's.
        log_share: its logarithm; -inf where there is none.
        log_rest: the logarithm of the candidate's mass on the others.
        out: float64 [5].
    """
    out[0] = (1.0 - tail) * kept
    out[1] = (1.0 - share) * kept_reverse
    out[4] = (1.0 - tail) * kept_entropy
    if tail > 0.0:
        out[4] -= tail * math.log(tail) + (1.0 - tail) * math.log1p(-tail)
    if 0.0 <= between < 1.0:
        if 0.0 < share < NEARLY_ALL or between == 0.0:
            out[0] += binary_divergence(between, share)
        elif log_share > -math.inf:
            out[0] += between * (math.log(between) - log_share)
            out[0] += (1.0 - between) * (math.log1p(-between) - log_rest)
        if between > 0.0 or share == 0.0:
            out[1] += binary_divergence(share, between)


@njit(nogil=True, error_model="numpy", cache=True)
def _tail_of_file(kept_mass, low, zeros):
    """The base's mass on code 0 as a .kld row tells it: what the kept codes leave, if plausible."""
    return min(max(1.0 - kept_mass, 0.0), zeros * math.exp(f8(low)))


@njit(nogil=True, error_model="numpy", cache=True)
def _least_between(share, low, scale, zeros):
    """The base's mass on code 0, of all that a .kld row allows, that is nearest to the candidate's.

    The row gives it only as a small difference of rounded numbers, which would say more about the
    rounding than about the candidate. But no entry of code 0 has more than half a step above the
    lowest code. Negative where the candidate's own mass is allowed.
    """
    most = zeros * math.exp(f8(low) + f8(scale) / 2)
    return most if share > most else -1.0


@njit(nogil=True, error_model="numpy", cache=True)
def _flat_row(x, token, target, has_extras, out):
    """A base row whose logits are all equal: its codes carry nothing, the base is uniform."""
    n = x.shape[0]
    top = first_maximum(x)
    q_sum = 0.0
    mean = 0.0
    for i in range(n):
        q_sum += math.exp(f8(x[i]) - f8(x[top]))
        mean += f8(x[i])
    if not math.isfinite(mean):
        return -1
    lse = f8(x[top]) + math.log(q_sum)
    log_n = math.log(n)
    reverse = 0.0
    for i in range(n):
        lq = f8(x[i]) - lse
        reverse += math.exp(lq) * (lq + log_n)
    out[0] = lse - mean / n - log_n
    out[1] = reverse
    out[2] = lse - f8(x[token])
    out[3] = -target if has_extras else log_n
    out[4] = log_n
    return top


@njit(nogil=True, error_model="numpy", cache=True)
def _codes_row_in_double(x, c, scale, low, token, tail, target, has_extras, out):
    """The textbook sums in float64, for candidates too broken for the float32 pass.

    Kept entries and tail each have an anchor of their own: either may lie so far below the other
    that its exponentials vanish, and its logarithm counts all the same.
    """
    kept_max = tail_max = -math.inf
    for i in range(x.shape[0]):
        if c[i] > 0:
            kept_max = max(kept_max, f8(x[i]))
        else:
            tail_max = max(tail_max, f8(x[i]))
    p_sum = q_kept = q_tail = 0.0
    count = 0
    for i in range(x.shape[0]):
        if c[i] > 0:
            count += 1
            p_sum += math.exp(f8(scale) * (f8(c[i]) - 65535.0))
            q_kept += math.exp(f8(x[i]) - kept_max)
        else:
            q_tail += math.exp(f8(x[i]) - tail_max)
    log_p = math.log(p_sum)
    log_kept = kept_max + math.log(q_kept)
    log_tail = tail_max + math.log(q_tail) if q_tail > 0.0 else -math.inf
    high = max(log_kept, log_tail)
    log_q = high + math.log(math.exp(log_kept - high) + math.exp(log_tail - high))
    kept = reverse = entropy = 0.0
    for i in range(x.shape[0]):
        if c[i] > 0:
            lp = f8(scale) * (f8(c[i]) - 65535.0) - log_p
            lq = f8(x[i]) - log_kept
            p = math.exp(lp)
            kept += p * (lp - lq)
            reverse += math.exp(lq) * (lq - lp)
            entropy -= p * lp
    share = math.exp(log_tail - log_q)
    between = tail if has_extras else _least_between(share, low, scale, x.shape[0] - count)
    _join(
        kept, reverse, entropy,
        tail, between, share, log_tail - log_q, log_kept - log_q, out,
    )  # fmt: skip
    out[2] = log_q - f8(x[token])
    out[3] = -target
