"""The two loops over one strip of a row of codes (numba): the tail's mass, and the kept entries.

A strip is so short that its packed entries are still in the first cache when they are summed, and
so long that reading ahead never stops. Each loop is here twice: plain, which LLVM vectorises, and
wide, written for AVX-512. Both say the same; the wide one packs and sums in one go, so that the
arithmetic hides in the wait for memory.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from kldcloud.divergence.kept_numba import AHEAD, pack_plain
from kldcloud.divergence.lanes import (
    LANES,
    above_zero,
    append,
    as_floats,
    chosen,
    count,
    first_lanes,
    fused,
    fused_where,
    in_all_lanes,
    larger,
    largest,
    load,
    minus,
    others,
    plus,
    scaled,
    smaller,
    smallest,
    times,
    total,
)
from kldcloud.divergence.row_numba import (
    LN2,
    LOG2E,
    LOWEST_BASE,
    LOWEST_RATIO,
    MAGIC,
    ONE,
    P1,
    P2,
    P3,
    P4,
    P5,
    P6,
    Q2,
    Q3,
    Q4,
    Q5,
    Q6,
    Q7,
    ZERO,
    entry_terms,
)
from kldcloud.divergence.vector_math import (
    add_lanes32,
    code_to_float,
    fused32,
    keep32,
    max32,
    min32,
    multiply_add32,
    prefetch,
    scale32,
    wide_vectors,
)

f4 = np.float32

STRIP = 2048
"""Columns a strip."""

R1, R2, R3, R4, R5 = (
    f4(0.6931469775985425),
    f4(0.2402224208466175),
    f4(0.05550733743927268),
    f4(0.009671512682434104),
    f4(0.0013264727094066397),
)
"""(2^f - 1) / f on [-1/2, 1/2], degree 4, relative error 9e-8: the tail weighs little."""


@njit(nogil=True, error_model="numpy", cache=True)
def pack_strip_plain(x, c, c0, packed_x, packed_c, kept):
    """Append the entries with a code above 0 as `pack` does, and sum 2^(x log2 e - c0) over others.

    Args:
        x: float32 [n] candidate logits.
        c: uint16 [n] base codes.
        c0: float32, the anchor in log2 units.
        packed_x: float32, `SLACK` longer than needed.
        packed_c: float32, the same.
        kept: how many these hold.

    Returns:
        (how many they hold then, the sum: not finite if a summed logit is not).
    """
    rest = x_sum = ZERO
    for i in range(x.shape[0]):
        t = max32(fused32(x[i], LOG2E, -c0), LOWEST_BASE)
        tm = t + MAGIC
        f = t - (tm - MAGIC)
        p = fused32(fused32(fused32(fused32(R5, f, R4), f, R3), f, R2), f, R1)
        tail = code_to_float(c[i]) == ZERO
        rest = add_lanes32(rest, keep32(tail, scale32(fused32(p, f, ONE), tm)))
        x_sum = add_lanes32(x_sum, x[i])
    if not math.isfinite(x_sum):
        rest = f4(np.nan)
    return pack_plain(x, c, packed_x, packed_c, kept), rest


@njit(nogil=True, error_model="numpy", cache=True, inline="always")
def _power_of_2(x, c0):
    """Two factors of 2^(x log2 e - c0); one is NaN if x is not finite."""
    t = fused(x, LOG2E, in_all_lanes(-c0))
    k = minus(plus(t, MAGIC), MAGIC)
    f = minus(t, k)
    p = fused(fused(fused(fused(R5, f, R4), f, R3), f, R2), f, R1)
    return fused(p, f, ONE), scaled(in_all_lanes(ONE), k)


@njit(nogil=True, error_model="numpy", cache=True)
def pack_strip_wide(x, c, c0, packed_x, packed_c, kept):
    """As `pack_strip_plain`, with AVX-512 in one loop."""
    even = in_all_lanes(ZERO)  # two sums: an addition takes longer than what lies between two
    odd = in_all_lanes(ZERO)
    whole = x.shape[0] // (2 * LANES) * (2 * LANES)
    for at in range(0, whole, 2 * LANES):
        prefetch(x, at + AHEAD)
        prefetch(x, at + AHEAD + LANES)
        prefetch(c, at + AHEAD)
        values = load(x, at)
        codes = load(c, at)
        told_apart = above_zero(codes)
        p, q = _power_of_2(values, c0)
        even = fused_where(others(told_apart), p, q, even)
        append(packed_x, kept, told_apart, values)
        append(packed_c, kept, told_apart, as_floats(codes))
        kept += count(told_apart)
        values = load(x, at + LANES)
        codes = load(c, at + LANES)
        told_apart = above_zero(codes)
        p, q = _power_of_2(values, c0)
        odd = fused_where(others(told_apart), p, q, odd)
        append(packed_x, kept, told_apart, values)
        append(packed_c, kept, told_apart, as_floats(codes))
        kept += count(told_apart)
    rest = total(plus(even, odd))
    if whole < x.shape[0]:
        kept, last = pack_strip_plain(x[whole:], c[whole:], c0, packed_x, packed_c, kept)
        rest += last
    return kept, rest


@njit(nogil=True, error_model="numpy", cache=True)
def kept_strip_plain(x, c, start, stop, c0, c_top, a):
    """`row_numba`'s sums P, S, F, E, R over packed entries start..stop, smallest ratio, largest x.

    Args:
        x: float32, candidate logits.
        c: float32, base codes, of step a in log2 units.
        start: first entry.
        stop: the entry after the last.
        c0: float32, the candidate's anchor in log2 units.
        c_top: float32, the base's largest code.
        a: float32.
    """
    p_sum = s_sum = f_sum = e_sum = r_sum = ratio_min = ZERO
    x_max = x[start]
    for i in range(start, stop):
        t = (c[i] - c_top) * a
        p, v, phi, r, ratio = entry_terms(x[i], t, c0)
        p_sum = add_lanes32(p_sum, p)
        s_sum = multiply_add32(s_sum, p, v)
        f_sum = multiply_add32(f_sum, p, phi)
        e_sum = multiply_add32(e_sum, p, t)
        r_sum = multiply_add32(r_sum, p, r)
        ratio_min = min32(ratio_min, ratio)
        x_max = max32(x_max, x[i])
    return p_sum, s_sum, f_sum, e_sum, r_sum, ratio_min, x_max


@njit(nogil=True, error_model="numpy", cache=True, inline="always")
def _kept_terms(x, c, c0, c_top, a):
    """p, v, phi, t, R's factor and the ratio of sixteen entries; letters as in the plain loop."""
    t = times(minus(c, c_top), a)
    k = minus(plus(t, MAGIC), MAGIC)
    f = minus(t, k)
    p = fused(fused(fused(fused(fused(P6, f, P5), f, P4), f, P3), f, P2), f, P1)
    p = scaled(fused(p, f, ONE), k)
    ratio = minus(fused(x, LOG2E, in_all_lanes(-c0)), t)
    v = larger(LOWEST_RATIO, ratio)
    k = minus(plus(v, MAGIC), MAGIC)
    g = minus(v, k)
    q = fused(fused(fused(fused(fused(Q7, g, Q6), g, Q5), g, Q4), g, Q3), g, Q2)
    s = scaled(in_all_lanes(ONE), k)
    sg = times(s, g)
    phi = fused(times(sg, g), q, fused(minus(sg, v), LN2, minus(s, ONE)))
    u = times(v, LN2)
    return p, v, phi, t, minus(times(u, plus(u, phi)), phi), ratio


@njit(nogil=True, error_model="numpy", cache=True)
def kept_strip_wide(x, c, start, stop, c0, c_top, a):
    """As `kept_strip_plain`, with AVX-512 and without a slow end: strips keep few entries."""
    p_sum = in_all_lanes(ZERO)
    s_sum = in_all_lanes(ZERO)
    f_sum = in_all_lanes(ZERO)
    e_sum = in_all_lanes(ZERO)
    r_sum = in_all_lanes(ZERO)
    ratio_min = in_all_lanes(ZERO)
    x_max = in_all_lanes(x[start])
    whole = start + (stop - start) // LANES * LANES
    for at in range(start, whole, LANES):
        values = load(x, at)
        p, v, phi, t, r, ratio = _kept_terms(values, load(c, at), c0, c_top, a)
        p_sum = plus(p_sum, p)
        s_sum = fused(p, v, s_sum)
        f_sum = fused(p, phi, f_sum)
        e_sum = fused(p, t, e_sum)
        r_sum = fused(p, r, r_sum)
        ratio_min = smaller(ratio, ratio_min)
        x_max = larger(values, x_max)
    if whole < stop:  # The lanes beyond repeat the first entry, at weight 0.
        inside = first_lanes(stop - whole)
        values = chosen(inside, load(x, whole), x[start])
        codes = chosen(inside, load(c, whole), c[start])
        p, v, phi, t, r, ratio = _kept_terms(values, codes, c0, c_top, a)
        p = chosen(inside, p, ZERO)
        p_sum = plus(p_sum, p)
        s_sum = fused(p, v, s_sum)
        f_sum = fused(p, phi, f_sum)
        e_sum = fused(p, t, e_sum)
        r_sum = fused(p, r, r_sum)
        ratio_min = smaller(ratio, ratio_min)
        x_max = larger(values, x_max)
    return (
        total(p_sum),
        total(s_sum),
        total(f_sum),
        total(e_sum),
        total(r_sum),
        smallest(ratio_min),
        largest(x_max),
    )


pack_strip = pack_strip_wide if wide_vectors() else pack_strip_plain
kept_strip = kept_strip_wide if wide_vectors() else kept_strip_plain
