"""The sums of a tile of logits on a GPU, in one reading of it (Triton).

A program has a row. It takes a stretch of both sides into registers: maxima first, exponentials
once, then the sums, while the next stretch is on its way. So each logit is written by the product
and read here, and that is all: 16 bytes an entry of the two sides, where PyTorch's operations one
by one move hundreds.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kldcloud.divergence.base_rows import CLAMP_NATS
from kldcloud.divergence.linear.blocks_triton import LARGEST, LOG2E, NOWHERE, phi
from kldcloud.divergence.linear.encoding import Encoding, LlamaSums
from kldcloud.divergence.linear.stretches import Stretches

WIDTH = 1024
"""Columns of a stretch: 16 entries of each side in each of 64 threads' registers."""
OPTIONS = {"num_warps": 2, "enable_fp_fusion": True}
UNFUSED = {"enable_fp_fusion": False}
"""Multiply and add are two roundings in llama.cpp."""

CUT = tl.constexpr(-CLAMP_NATS)
MAGIC = tl.constexpr(12582912.0)
"""1.5 * 2**23: adding it rounds to whole numbers, half to even."""


@triton.jit
def _loaded(x, at, columns, WHOLE: tl.constexpr):
    """Entries, and -LARGEST beyond the last one."""
    if WHOLE:
        return tl.load(x + at)
    return tl.load(x + at, mask=at < columns, other=-LARGEST)


@triton.jit
def _sums(b, c):
    """P, g and the sums of p phi(u), q' phi(-u), p u and p (b - B) of logits less their largest.

    An entry of -LARGEST on both sides adds nothing to any of them.
    """
    p, q = tl.exp2(b * LOG2E), tl.exp2(c * LOG2E)
    mass, mass_q = tl.sum(p, axis=0), tl.sum(q, axis=0)
    weighted = tl.sum(p * b, axis=0)
    # Correctly rounded, so that equal masses give 1; the fast logarithm of 1 need not be 0.
    ratio = tl.math.div_rn(mass_q, mass)
    log_ratio = tl.where(ratio == 1.0, 0.0, tl.log(ratio))
    u = c - b - log_ratio
    q = q * (1.0 / ratio)
    square = u * u
    grown = phi(u, square)
    more = q - p
    near = square <= 1.0
    forward = tl.sum(tl.where(near, p * grown, more - p * u), axis=0)
    # q' phi(-u) = p (u^2 - (1 - u) phi(u)), as q' = p e^u.
    reverse = tl.sum(tl.where(near, p * (square + grown * (u - 1.0)), q * u - more), axis=0)
    return mass, log_ratio, forward, reverse, tl.sum(p * u, axis=0), weighted


@triton.jit
def _tile_kernel(b, c, b_stride, c_stride, tokens, picked, best, rows, start, columns, first,
                 sums, tops, stride, plane, WIDTH: tl.constexpr, WHOLE: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    b += row * b_stride
    c += row * c_stride
    token = tl.load(tokens + row) - start
    here = (token >= 0) & (token < columns)
    tl.store(picked + row, tl.load(b + token, mask=here), mask=here)
    tl.store(picked + rows + row, tl.load(c + token, mask=here), mask=here)
    best_b, best_c = tl.load(best + row), tl.load(best + rows + row)
    out = row * stride + first
    lanes = tl.arange(0, WIDTH)
    for at in range(0, columns, WIDTH):
        lanes = at + tl.arange(0, WIDTH)
        x_b, x_c = _loaded(b, lanes, columns, WHOLE), _loaded(c, lanes, columns, WHOLE)
        high_b, high_c = tl.max(x_b, axis=0), tl.max(x_c, axis=0)
        low = tl.min(x_b if WHOLE else tl.where(lanes < columns, x_b, LARGEST), axis=0)
        # Only a new largest logit is looked for: a few times a row, and never among equals.
        if high_b > best_b:
            best_b = high_b
            tl.store(tops + out, start + tl.min(tl.where(x_b == high_b, lanes, NOWHERE), axis=0))
        if high_c > best_c:
            best_c = high_c
            found = start + tl.min(tl.where(x_c == high_c, lanes, NOWHERE), axis=0)
            tl.store(tops + plane + out, found)
        mass, log_ratio, forward, reverse, drift, weighted = _sums(x_b - high_b, x_c - high_c)
        # A base logit that is not finite shows in P, or as the smallest; a candidate's makes the
        # sum of p phi(u) infinite or NaN, as a base's may too. No entry is looked at for that.
        broken_b = ~(mass <= LARGEST) | (low < -LARGEST)
        broken_c = ~(forward <= LARGEST) & ~broken_b
        tl.store(sums + out, tl.where(broken_b, float("nan"), high_b))
        tl.store(sums + plane + out, tl.where(broken_c, float("nan"), high_c))
        tl.store(sums + 2 * plane + out, low)
        tl.store(sums + 3 * plane + out, mass)
        tl.store(sums + 4 * plane + out, log_ratio)
        tl.store(sums + 5 * plane + out, forward)
        tl.store(sums + 6 * plane + out, reverse)
        tl.store(sums + 7 * plane + out, drift)
        tl.store(sums + 8 * plane + out, weighted)
        out += 1
    tl.store(best + row, best_b)
    tl.store(best + rows + row, best_c)


@triton.jit
def _llama_kernel(b, c, b_stride, c_stride, scale, inverse, smallest, low, log_mass, start,
                  columns, place, kld, high, top, stride,
                  WIDTH: tl.constexpr, WHOLE: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    stretch = tl.program_id(1)
    at = stretch * WIDTH + tl.arange(0, WIDTH)
    x_b = _loaded(b + row * b_stride, at, columns, WHOLE)
    x_c = _loaded(c + row * c_stride, at, columns, WHOLE)
    above = x_b - tl.load(smallest + row)
    code = (tl.load(inverse + row) * above + MAGIC) - MAGIC
    code = tl.where(above > 0, code, 0.0)
    log_p = tl.load(scale + row) * code + tl.load(low + row)
    if not WHOLE:
        log_p = tl.where(at < columns, log_p, -LARGEST)
    largest = tl.max(log_p, axis=0)
    first = tl.min(tl.where(log_p == largest, at, NOWHERE), axis=0) + start
    # The exponential in float64, then rounded: as good a float32 as there is.
    kept = log_p > CUT
    p = tl.exp(tl.where(kept, log_p, 0.0).to(tl.float64)).to(tl.float32)
    terms = tl.where(kept, p * ((log_p - x_c) + tl.load(log_mass + row)), 0.0)
    out = row * stride + place + stretch
    tl.store(kld + out, tl.sum(terms.to(tl.float64), axis=0))
    tl.store(high + out, largest)
    tl.store(top + out, first)


def summarise(
    b: Tensor,
    c: Tensor,
    start: int,
    tokens: Tensor,
    picked: Tensor,
    best: Tensor,
    out: Stretches,
    first: int,
) -> None:
    """A tile as stretches of `WIDTH` columns; tiles of a row come in the vocabulary's order.

    Args:
        b: float32 ``[n, columns]``, base logits.
        c: the same of the candidate.
        start: token of the first column.
        tokens: int32 ``[n]``, the next tokens.
        picked: float32 ``[2, n]``, receives the next tokens' logits where they are among these.
        best: float32 ``[2, n]``, the largest logits of the tiles before, brought up to date.
        out: receives the sums, and the tokens of those maxima that are larger than all before
            them; what it has as tokens of other maxima means nothing.
        first: place of the first stretch in it.
    """
    rows, columns = b.shape
    _tile_kernel[(rows,)](
        b, c, b.stride(0), c.stride(0), tokens, picked, best, rows, start, columns, first,
        out.sums, out.tops, out.sums.stride(1), out.sums.stride(0), WIDTH=WIDTH,
        WHOLE=columns % WIDTH == 0, **OPTIONS,
    )  # fmt: skip


def llama_sums(
    b: Tensor, c: Tensor, start: int, encoding: Encoding, out: LlamaSums, first: int
) -> None:
    """llama.cpp's sums of a tile.

    Args:
        b: float32 ``[n, columns]``, base logits.
        c: the same of the candidate.
        start: token of the first column.
        encoding: of the rows.
        out: receives them.
        first: place of the first stretch in it.
    """
    rows, columns = b.shape
    _llama_kernel[(rows, triton.cdiv(columns, WIDTH))](
        b, c, b.stride(0), c.stride(0), encoding.scale, encoding.inverse, encoding.smallest,
        encoding.low, encoding.log_mass, start, columns, first, out.kld, out.high, out.top,
        out.kld.stride(0), WIDTH=WIDTH, WHOLE=columns % WIDTH == 0, **OPTIONS | UNFUSED,
    )  # fmt: skip
