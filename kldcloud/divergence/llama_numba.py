"""llama.cpp's own arithmetic for base codes and clamped statistics, vectorised (numba).

People check our figures against `llama-perplexity --kl-divergence` digit for digit, so this follows
that tool's float32 operations one by one, in its order, without fusing: what it rounds, we round.
How its `expf` is followed, and where not bit for bit, is told in `expf_numba`. Sums that the tool
keeps in double are kept in double, over lanes.

The formulas are those of llama.cpp's tools/perplexity/perplexity.cpp, as of the version that
llama-cpp-python 0.3.36 carries.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from kldcloud.divergence.expf_numba import LIGHT_VOCABULARY, LOWEST, exp64, expf_sum
from kldcloud.divergence.llama_packed_numba import CUT, packed_expf_sum, packed_terms
from kldcloud.divergence.row_numba import BLOCK, first_maximum
from kldcloud.divergence.vector_math import add_lanes64, code_to_float, max32, min32

f4 = np.float32
f8 = np.float64

UNKNOWN = -1.0
"""A sum that has yet to be made."""
LITTLE = 0.01
"""The share of a sum that need not be as exact as the tool's terms."""


@njit(nogil=True, error_model="numpy", cache=True)
def _exact_sum(x, c, scale, low, lse):
    """Sum of the tool's terms above its cut over a whole row: float32 terms, float64 sum."""
    total = 0.0
    for i in range(x.shape[0]):
        lp = scale * code_to_float(c[i]) + low
        p = f4(exp64(f8(max32(lp, LOWEST))))
        term = p * ((lp - x[i]) + lse)
        total = add_lanes64(total, f8(term) if lp > CUT else 0.0)
    return total


@njit(nogil=True, error_model="numpy", cache=True)
def _expf_sum(x, largest, packed, kept, rest):
    """Sum of the tool's expf(x - largest); spares entries of code 0 where they weigh little."""
    if rest >= 0.0 and x.shape[0] >= LIGHT_VOCABULARY:
        total = packed_expf_sum(packed[0, :kept], largest, packed[2]) + rest
        if rest <= LITTLE * total:
            return total
    return expf_sum(x, largest)


@njit(nogil=True, error_model="numpy", cache=True)
def clamped_row(x, row, token, top, base_top, packed, kept, rest, out):
    """The tool's statistics of one position.

    Args:
        x: float32 [V] candidate logits.
        row: uint16 [4 + V (+1)] the base's row.
        token: the next token.
        top: first index of the largest of x.
        base_top: first index of the row's largest code.
        packed: float32 [4, V + SLACK]: logits and codes of the entries with a code above 0, and
            room to work.
        kept: how many these are.
        rest: sum of e^(x - largest x) over entries with code 0, or UNKNOWN.
        out: float64 [3], receives KLD, and float32 values of NLL and base NLL.

    Returns:
        The base's top token as the tool finds it.
    """
    n = x.shape[0]
    header = row[:4].view(np.float32)
    scale = header[0]
    low = header[1]
    c = row[4 : 4 + n]
    largest = x[top]
    total = _expf_sum(x, largest, packed, kept, rest)
    lse = f4(largest + f4(math.log(total)))
    if n < LIGHT_VOCABULARY or low > CUT:
        out[0] = _exact_sum(x, c, scale, low, lse)
    else:  # Entries with code 0 lie below the cut.
        out[0] = packed_terms(packed, kept, scale, low, lse)
    out[1] = f4(lse - x[token])
    out[2] = -f4(f4(scale * f4(c[token])) + low)
    return _first_largest(c, scale, low, base_top)


@njit(nogil=True, error_model="numpy", cache=True)
def _first_largest(c, scale, low, base_top):
    """First index of the largest log-probability: where steps are tiny, codes round together."""
    if scale == f4(0):
        return 0
    level = int(c[base_top])
    largest = f4(f4(scale * f4(level)) + low)
    while level > 0 and f4(f4(scale * f4(level - 1)) + low) == largest:
        level -= 1
    if level < int(c[base_top]):
        for i in range(base_top):
            if int(c[i]) >= level:
                return i
    return base_top


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
    lse = f4(math.log(expf_sum(x, largest)))
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
        p = exp64(max(d, -690.0))
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
