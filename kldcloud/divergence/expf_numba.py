"""Sums of llama.cpp's float32 exponentials, vectorised (numba).

Its `expf` is not reproducible bit for bit; a float64 exponential rounded to float32 agrees with a
good libm in all but about one case in a thousand, by one unit in the last place. Large entries are
done so. Small ones are summed in float32: those exponentials are off by a unit in the last place
now and then, which over a block of small entries is about 1e-9 of the sum and moves no printed
digit, while on a single large entry it would.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from kldcloud.divergence.lanes import fused, minus, scaled
from kldcloud.divergence.row_numba import MAGIC, ONE, ZERO
from kldcloud.divergence.vector_math import (
    add_lanes32,
    add_lanes64,
    fused32,
    fused64,
    keep32,
    max32,
    scale32,
    scale64,
)

f4 = np.float32
f8 = np.float64

MAGIC64 = 6755399441055744.0
"""1.5 * 2**52: adding it leaves round(x) in the low mantissa bits."""
LOG2E64 = math.log2(math.e)
D1, D2, D3, D4, D5, D6, D7, D8 = (
    0.6931471805568322,
    0.24022650695888478,
    0.05550410906325848,
    0.0096181291352524,
    0.001333347847360808,
    0.00015403475171113268,
    1.5303700728388802e-05,
    1.3250809616195865e-06,
)
"""(2^f - 1) / f on [-1/2, 1/2], degree 7, relative error 2e-12."""

LOG2E32 = f4(math.log2(math.e))
LN2_HIGH = f4(0.693359375)
LN2_LOW = f4(math.log(2) - 0.693359375)
E1, E2, E3, E4, E5, E6 = (
    f4(1.0000000107715703),
    f4(0.5000000013457722),
    f4(0.16666505260407813),
    f4(0.041666465006029996),
    f4(0.00836914849103704),
    f4(0.0013933641033307947),
)
"""(e^r - 1) / r on [-ln 2 / 2, ln 2 / 2], degree 5, relative error 5e-9."""

LIGHT = f4(-9.0)
"""Entries below e^-9 of the whole are small enough for float32; of others, a row has hundreds.

On SmolLM2's rows the tool's divergence then comes out within 2e-10 nats (rms; 1e-9 at most): one
printed digit in some thousands tips over. At e^-5 it was one in three hundred.
"""
LIGHT_BLOCK = 512
LIGHT_VOCABULARY = 16384
"""Below this there are too few blocks for their errors to average out, and nothing to save."""
SEARCH = 64
"""Columns at a time in which large entries are looked for."""

LOWEST = f4(-87.0)
"""Below this, exp is under 2e-38: nothing to any sum, and the exponent trick needs a bound."""


@njit(nogil=True, error_model="numpy", cache=True, inline="always")
def exp64(d):
    """e^d for float64 d in [-690, 690]."""
    t = d * LOG2E64
    tm = t + MAGIC64
    f = t - (tm - MAGIC64)
    p = fused64(fused64(fused64(fused64(D8, f, D7), f, D6), f, D5), f, D4)
    p = fused64(fused64(fused64(fused64(p, f, D3), f, D2), f, D1), f, 1.0)
    return scale64(p, tm)


@njit(nogil=True, error_model="numpy", cache=True, inline="always")
def exp32(d):
    """e^d for float32 d in [-87, 87], to about one unit in the last place."""
    tm = fused32(d, LOG2E32, MAGIC)
    k = tm - MAGIC
    r = fused32(k, -LN2_LOW, fused32(k, -LN2_HIGH, d))
    p = fused32(fused32(fused32(fused32(fused32(E6, r, E5), r, E4), r, E3), r, E2), r, E1)
    return scale32(fused32(p, r, ONE), tm)


@njit(nogil=True, error_model="numpy", cache=True, inline="always")
def exp_lanes(d):
    """`exp32` of sixteen float32 in a register."""
    k = minus(fused(d, LOG2E32, MAGIC), MAGIC)
    r = fused(k, -LN2_LOW, fused(k, -LN2_HIGH, d))
    p = fused(fused(fused(fused(fused(E6, r, E5), r, E4), r, E3), r, E2), r, E1)
    return scaled(fused(p, r, ONE), k)


@njit(nogil=True, error_model="numpy", cache=True)
def _light_sum_block(x, anchor):
    small = ZERO
    x_max = x[0]
    for i in range(x.shape[0]):
        d = x[i] - anchor
        small = add_lanes32(small, keep32(d <= LIGHT, exp32(max32(d, LOWEST))))
        x_max = max32(x_max, x[i])
    return small, x_max


@njit(nogil=True, error_model="numpy", cache=True)
def _largest(x):
    largest = x[0]
    for i in range(x.shape[0]):
        largest = max32(largest, x[i])
    return largest


@njit(nogil=True, error_model="numpy", cache=True)
def large_sum(x, anchor):
    """Sum of expf(x - anchor) over the large entries, as exactly as the tool does them."""
    total = 0.0
    for at in range(0, x.shape[0], SEARCH):
        few = x[at : at + SEARCH]
        if _largest(few) - anchor > LIGHT:
            for i in range(few.shape[0]):
                d = few[i] - anchor
                if d > LIGHT:
                    total += f8(f4(exp64(f8(d))))
    return total


@njit(nogil=True, error_model="numpy", cache=True)
def _exact_sum(x, largest):
    total = 0.0
    for i in range(x.shape[0]):
        d = max32(x[i] - largest, LOWEST)
        total = add_lanes64(total, f8(f4(exp64(f8(d)))))
    return total


@njit(nogil=True, error_model="numpy", cache=True)
def expf_sum(x, largest):
    """Sum of expf(x - largest), float32 terms in a float64 sum as the tool's."""
    if x.shape[0] < LIGHT_VOCABULARY:
        return _exact_sum(x, largest)
    total = 0.0
    for at in range(0, x.shape[0], LIGHT_BLOCK):
        block = x[at : at + LIGHT_BLOCK]
        small, here = _light_sum_block(block, largest)
        total += f8(small)
        if here - largest > LIGHT:
            total += large_sum(block, largest)
    return total
