"""llama.cpp's sums over the entries of a row whose code is above 0 (numba).

Each sum is here twice: plain, which LLVM vectorises, and wide, written for AVX-512. Both make the
large terms one by one as exactly as the tool does, and the small ones in float32 (`expf_numba` says
why); the wide ones put the large entries aside as they pass.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from kldcloud.divergence.expf_numba import (
    LIGHT,
    LIGHT_BLOCK,
    LOWEST,
    SEARCH,
    exp32,
    exp64,
    exp_lanes,
    expf_sum,
)
from kldcloud.divergence.lanes import (
    LANES,
    above,
    append,
    both,
    count,
    in_all_lanes,
    load,
    minus,
    others,
    plus,
    plus_where,
    times,
    total,
)
from kldcloud.divergence.row_numba import ZERO
from kldcloud.divergence.vector_math import add_lanes64, keep32, max32, wide_vectors

f4 = np.float32
f8 = np.float64

CUT = f4(-16.0)
"""The tool sums over base log-probabilities above this."""


@njit(nogil=True, error_model="numpy", cache=True)
def _small_terms_block(x, c, scale, low, lse):
    """Sum of the tool's terms above its cut over small entries, and the largest code."""
    total = 0.0
    largest = ZERO
    for i in range(x.shape[0]):
        lp = scale * c[i] + low
        term = exp32(max32(lp, LOWEST)) * ((lp - x[i]) + lse)
        total = add_lanes64(total, f8(keep32((lp > CUT) & (lp <= LIGHT), term)))
        largest = max32(largest, c[i])
    return total, largest


@njit(nogil=True, error_model="numpy", cache=True)
def _largest_code(c):
    largest = c[0]
    for i in range(c.shape[0]):
        largest = max32(largest, c[i])
    return largest


@njit(nogil=True, error_model="numpy", cache=True)
def _large_terms(x, c, scale, low, lse):
    """The same sum over the large entries, as exactly as the tool does them."""
    total = 0.0
    for at in range(0, x.shape[0], SEARCH):
        few = c[at : at + SEARCH]
        if scale * _largest_code(few) + low > LIGHT:
            for i in range(few.shape[0]):
                lp = scale * few[i] + low
                if lp > LIGHT:
                    total += f8(f4(exp64(f8(lp))) * ((lp - x[at + i]) + lse))
    return total


@njit(nogil=True, error_model="numpy", cache=True)
def packed_terms_plain(packed, kept, scale, low, lse):
    """Sum of the tool's terms above its cut over packed entries.

    Args:
        packed: float32 [4, >= kept + SLACK]: candidate logits, base codes, and room to work.
        kept: how many entries are packed.
        scale: float32, the base row's step in nats.
        low: float32, the log-probability of its code 0.
        lse: float32, the candidate's log-sum-exp.
    """
    x = packed[0, :kept]
    c = packed[1, :kept]
    total = 0.0
    for at in range(0, x.shape[0], LIGHT_BLOCK):
        xs = x[at : at + LIGHT_BLOCK]
        cs = c[at : at + LIGHT_BLOCK]
        small, largest = _small_terms_block(xs, cs, scale, low, lse)
        total += small
        if scale * largest + low > LIGHT:
            total += _large_terms(xs, cs, scale, low, lse)
    return total


@njit(nogil=True, error_model="numpy", cache=True)
def _exact_terms(x, c, scale, low, lse):
    result = 0.0
    for i in range(x.shape[0]):
        lp = scale * c[i] + low
        term = f4(exp64(f8(max32(lp, LOWEST)))) * ((lp - x[i]) + lse)
        result = add_lanes64(result, f8(term) if lp > CUT else 0.0)
    return result


@njit(nogil=True, error_model="numpy", cache=True)
def packed_terms_wide(packed, kept, scale, low, lse):
    """As `packed_terms_plain`, with AVX-512."""
    x, c, large_x, large_c = packed[0], packed[1], packed[2], packed[3]
    whole = kept // LANES * LANES
    result = _exact_terms(x[whole:kept], c[whole:kept], scale, low, lse)
    n_large = 0
    for start in range(0, whole, LIGHT_BLOCK):
        small = in_all_lanes(ZERO)
        for at in range(start, min(start + LIGHT_BLOCK, whole), LANES):
            values = load(x, at)
            codes = load(c, at)
            lp = plus(times(codes, scale), low)
            term = times(exp_lanes(lp), plus(minus(lp, values), lse))
            large = above(lp, LIGHT)
            small = plus_where(small, both(above(lp, CUT), others(large)), term)
            if large:
                append(large_x, n_large, large, values)
                append(large_c, n_large, large, codes)
                n_large += count(large)
        result += f8(total(small))
    return result + _exact_terms(large_x[:n_large], large_c[:n_large], scale, low, lse)


@njit(nogil=True, error_model="numpy", cache=True)
def packed_expf_sum_plain(x, largest, room):  # noqa: ARG001 - what the wide one works in
    """Sum of the tool's expf(x - largest).

    Args:
        x: float32 [n] logits.
        largest: the largest of the row.
        room: float32 [>= n + SLACK] to work in.
    """
    return expf_sum(x, largest)


@njit(nogil=True, error_model="numpy", cache=True)
def packed_expf_sum_wide(x, largest, room):
    """As `packed_expf_sum_plain`, with AVX-512."""
    whole = x.shape[0] // LANES * LANES
    result = expf_sum(x[whole:], largest)
    n_large = 0
    for start in range(0, whole, LIGHT_BLOCK):
        small = in_all_lanes(ZERO)
        for at in range(start, min(start + LIGHT_BLOCK, whole), LANES):
            values = load(x, at)
            d = minus(values, largest)
            large = above(d, LIGHT)
            small = plus_where(small, others(large), exp_lanes(d))
            if large:
                append(room, n_large, large, values)
                n_large += count(large)
        result += f8(total(small))
    return result + expf_sum(room[:n_large], largest)


packed_terms = packed_terms_wide if wide_vectors() else packed_terms_plain
packed_expf_sum = packed_expf_sum_wide if wide_vectors() else packed_expf_sum_plain
