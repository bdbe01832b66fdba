"""llama.cpp's own arithmetic for base codes and clamped statistics, vectorised (numba).

People check our figures against `llama-perplexity --kl-divergence` digit for digit, so this follows
that tool's float32 operations one by one, in its order, without fusing: what it rounds, we round.
Only its `expf` is not reproducible bit for bit; a float64 exponential rounded to float32 agrees
with a good libm in all but about one case in a thousand, by one unit in the last place. Sums that
the tool keeps in double are kept in double, over lanes.

The formulas are those of llama.cpp's tools/perplexity/perplexity.cpp, as of the version that
llama-cpp-python 0.3.36 carries.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from kldcloud.divergence.row_numba import (
    BLOCK,
    MAGIC,
    ONE,
    ZERO,
    first_maximum,
    first_top_code,
)
from kldcloud.divergence.vector_math import (
    add_lanes32,
    add_lanes64,
    code_to_float,
    fused32,
    fused64,
    keep32,
    max32,
    min32,
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

LIGHT = f4(-5.0)
"""A block without an entry above e^-5 of the whole is summed in float32.

Float32 exponentials are off by a unit in the last place now and then, either way: over a block of
small entries that is about 1e-9 of the sum and moves no printed digit, while a single large entry
would. Blocks with large entries, few in any row, are done as exactly as the tool does them.
"""
LIGHT_BLOCK = 512
LIGHT_VOCABULARY = 16384
"""Below this there are too few blocks for their errors to average out, and nothing to save."""

LOWEST = f4(-87.0)
"""Below this, exp is under 2e-38: nothing to any sum, and the exponent trick needs a bound."""
CUT = f4(-16.0)
"""The tool sums over base log-probabilities above this."""


@njit(nogil=True, error_model="numpy", cache=True, inline="always")
def _exp64(d):
    """e^d for float64 d in [-87, 87]."""
    t = d * LOG2E64
    tm = t + MAGIC64
    f = t - (tm - MAGIC64)
    p = fused64(fused64(fused64(fused64(D8, f, D7), f, D6), f, D5), f, D4)
    p = fused64(fused64(fused64(fused64(p, f, D3), f, D2), f, D1), f, 1.0)
    return scale64(p, tm)


@njit(nogil=True, error_model="numpy", cache=True, inline="always")
def _exp32(d):
    """e^d for float32 d in [-87, 87], to about one unit in the last place."""
    tm = d * LOG2E32 + MAGIC
    k = tm - MAGIC
    r = fused32(k, -LN2_LOW, fused32(k, -LN2_HIGH, d))
    p = fused32(fused32(fused32(fused32(fused32(E6, r, E5), r, E4), r, E3), r, E2), r, E1)
    return scale32(fused32(p, r, ONE), tm)


@njit(nogil=True, error_model="numpy", cache=True)
def _light_sum_block(x, largest):
    """sum of expf(x - largest) and the largest x, all in float32."""
    total = ZERO
    here = x[0]
    for i in range(x.shape[0]):
        total = add_lanes32(total, _exp32(max32(x[i] - largest, LOWEST)))
        here = max32(here, x[i])
    return total, here


@njit(nogil=True, error_model="numpy", cache=True)
def _heavy_sum_block(x, largest):
    """sum of expf(x - largest): float32 terms as the tool's, float64 sum."""
    total = 0.0
    for i in range(x.shape[0]):
        d = max32(x[i] - largest, LOWEST)
        total = add_lanes64(total, f8(f4(_exp64(f8(d)))))
    return total


@njit(nogil=True, error_model="numpy", cache=True)
def float_log_sum_exp(x, largest):
    """log of sum expf(x - largest), rounded to float32 as the tool does."""
    total = 0.0
    light = x.shape[0] >= LIGHT_VOCABULARY
    for at in range(0, x.shape[0], LIGHT_BLOCK):
        block = x[at : at + LIGHT_BLOCK]
        if light:
            part, here = _light_sum_block(block, largest)
            if here - largest <= LIGHT:
                total += f8(part)
                continue
        total += _heavy_sum_block(block, largest)
    return f4(math.log(total))


@njit(nogil=True, error_model="numpy", cache=True)
def _light_clamped_block(x, c, scale, low, lse):
    """sum of the tool's terms above its cut, and the largest log-probability, all in float32."""
    total = ZERO
    here = low
    for i in range(x.shape[0]):
        lp = scale * code_to_float(c[i]) + low
        term = _exp32(max32(lp, LOWEST)) * ((lp - x[i]) + lse)
        total = add_lanes32(total, keep32(lp > CUT, term))
        here = max32(here, lp)
    return total, here


@njit(nogil=True, error_model="numpy", cache=True)
def _heavy_clamped_block(x, c, scale, low, lse):
    """sum of the tool's terms above its cut: float32 terms as the tool's, float64 sum."""
    total = 0.0
    for i in range(x.shape[0]):
        lp = scale * code_to_float(c[i]) + low
        p = f4(_exp64(f8(max32(lp, LOWEST))))
        term = p * ((lp - x[i]) + lse)
        total = add_lanes64(total, f8(term) if lp > CUT else 0.0)
    return total


@njit(nogil=True, error_model="numpy", cache=True)
def _clamped_sum(x, c, scale, low, lse):
    total = 0.0
    light = x.shape[0] >= LIGHT_VOCABULARY
    for at in range(0, x.shape[0], LIGHT_BLOCK):
        xs = x[at : at + LIGHT_BLOCK]
        cs = c[at : at + LIGHT_BLOCK]
        if light:
            part, here = _light_clamped_block(xs, cs, scale, low, lse)
            if here <= LIGHT:
                total += f8(part)
                continue
        total += _heavy_clamped_block(xs, cs, scale, low, lse)
    return total


@njit(nogil=True, error_model="numpy", cache=True)
def clamped_row(x, row, token, top, out):
    """The tool's statistics of one position.

    Args:
        x: float32 [V] candidate logits.
        row: uint16 [4 + V (+1)] the base's row.
        token: the next token.
        top: first index of the largest of x.
        out: float64 [3], receives KLD, and float32 values of NLL and base NLL.

    Returns:
        The base's top token as the codes tell it (the first of equal codes).
    """
    n = x.shape[0]
    header = row[:4].view(np.float32)
    scale = header[0]
    low = header[1]
    c = row[4 : 4 + n]
    largest = x[top]
    lse = f4(largest + float_log_sum_exp(x, largest))
    out[0] = _clamped_sum(x, c, scale, low, lse)
    out[1] = f4(lse - x[token])
    out[2] = -f4(f4(scale * f4(c[token])) + low)
    return first_top_code(c) if scale != f4(0) else 0


@njit(nogil=True, error_model="numpy", cache=True)
def _extent_block(x):
    largest = x[0]
    smallest = x[0]
    for i in range(x.shape[0]):
        largest = max32(largest, x[i])
        smallest = min32(smallest, x[i])
    return largest, smallest


@njit(nogil=True, error_model="numpy", cache=True)
def _encode_block(x, low_logit, inverse, c):
    for i in range(x.shape[0]):
        code = np.rint(inverse * (x[i] - low_logit))
        c[i] = np.uint16(np.int32(code if x[i] > low_logit else f4(0)))


@njit(nogil=True, error_model="numpy", cache=True)
def encode_row(x, row):
    """16-nat codes of one row of logits, as llama.cpp writes them; returns (max, min) logit used.

    Args:
        x: float32 [V] base logits.
        row: uint16 [4 + V rounded up to even], filled; the odd V's spare word becomes 0.
    """
    n = x.shape[0]
    largest = x[0]
    smallest = x[0]
    for at in range(0, n, BLOCK):
        high, low = _extent_block(x[at : at + BLOCK])
        largest = max32(largest, high)
        smallest = min32(smallest, low)
    smallest = max32(smallest, largest - f4(16))
    lse = float_log_sum_exp(x, largest)
    scale = f4((largest - smallest) / f4(65535))
    header = row[:4].view(np.float32)
    header[0] = scale
    header[1] = f4(f4(smallest - largest) - lse)
    c = row[4:]
    c[n:] = 0
    if scale == f4(0):
        c[:] = 0
    else:
        inverse = f4(f4(1) / scale)
        for at in range(0, n, BLOCK):
            _encode_block(x[at : at + BLOCK], smallest, inverse, c[at : at + BLOCK])
    return largest, smallest


@njit(nogil=True, error_model="numpy", cache=True)
def _extras_block(x, c, largest):
    total = tail = weighted = 0.0
    for i in range(x.shape[0]):
        d = f8(x[i]) - f8(largest)
        p = _exp64(max(d, -690.0))
        total = add_lanes64(total, p)
        tail = add_lanes64(tail, p if c[i] == 0 else 0.0)
        weighted = add_lanes64(weighted, p * d)
    return total, tail, weighted


@njit(nogil=True, error_model="numpy", cache=True)
def row_extras(x, row, token, out):
    """What the codes lose, in float64: fills out [4] (see RowExtras), returns the top token.

    Args:
        x: float32 [V] base logits.
        row: uint16 codes of x, from `encode_row`.
        token: the next token.
        out: float64 [4]: normaliser, tail mass, target log-probability, entropy.

    Returns:
        First index of the largest logit; -1 if a logit is not finite.
    """
    n = x.shape[0]
    top = first_maximum(x)
    largest = x[top]
    c = row[4 : 4 + n]
    total = tail = weighted = 0.0
    for at in range(0, n, BLOCK):
        sums = _extras_block(x[at : at + BLOCK], c[at : at + BLOCK], largest)
        total += sums[0]
        tail += sums[1]
        weighted += sums[2]
    if not math.isfinite(weighted):
        return -1
    normaliser = math.log(total)
    out[0] = normaliser
    out[1] = tail / total
    out[2] = (f8(x[token]) - f8(largest)) - normaliser
    out[3] = normaliser - weighted / total
    return top
