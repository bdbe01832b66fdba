"""The sums of a tile of logits on a GPU, in one reading of it (Triton).

A program has a stretch of one row in registers: maxima first, exponentials once, then the sums. So
each logit is written by the product and read here, and that is all: 16 bytes an entry of the two
sides, where PyTorch's operations one by one move hundreds. For 4096 rows of 248,320 an H100 needs
2.6 ms for its 73 instructions an entry (sm_90a) and 2.9 ms to read them, beside 14 ms for the
products at d = 2048: reckoned from clocks and bandwidth; `benchmarks/gpu.py` measures it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kldcloud.divergence.base_rows import CLAMP_NATS
from kldcloud.divergence.linear.blocks_triton import (
    LARGEST,
    NOWHERE,
    block_sums,
    first_of,
    store_sums,
)
from kldcloud.divergence.linear.encoding import Encoding, LlamaSums
from kldcloud.divergence.linear.stretches import Stretches

WIDTH = 2048
"""Columns of a stretch: 16 entries of each side in each of 128 threads' registers."""
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
"""128 registers a thread on an H100 (ptxas for sm_90a), so four programs share a processor."""
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
def _tile_kernel(b, c, b_stride, c_stride, tokens, picked, rows, start, columns,
                 sums, tops, stride, plane, WIDTH: tl.constexpr, WHOLE: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    stretch = tl.program_id(1)
    b += row * b_stride
    c += row * c_stride
    at = stretch * WIDTH + tl.arange(0, WIDTH)[None, :]
    x_b, x_c = _loaded(b, at, columns, WHOLE), _loaded(c, at, columns, WHOLE)
    token = tl.load(tokens + row) - start
    here = (token // WIDTH == stretch) & (token >= 0) & (token < columns)
    tl.store(picked + row, tl.load(b + token, mask=here), mask=here)
    tl.store(picked + rows + row, tl.load(c + token, mask=here), mask=here)
    high_b, high_c = tl.max(x_b, axis=1), tl.max(x_c, axis=1)
    low = tl.min(x_b if WHOLE else tl.where(at < columns, x_b, LARGEST), axis=1)
    mass, log_ratio, forward, reverse, drift, weighted = block_sums(x_b, x_c, high_b, high_c)
    out = row * stride + stretch + tl.zeros([1], tl.int64)
    top_b, top_c = first_of(x_b, high_b, at) + start, first_of(x_c, high_c, at) + start
    store_sums(sums, tops, plane, out, out >= 0, high_b, high_c, low, top_b, top_c,
               mass, log_ratio, forward, reverse, drift, weighted)  # fmt: skip


@triton.jit
def _llama_kernel(b, c, b_stride, c_stride, scale, inverse, smallest, low, log_mass, start,
                  columns, kld, high, top, stride,
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
    out = row * stride + stretch
    tl.store(kld + out, tl.sum(terms.to(tl.float64), axis=0))
    tl.store(high + out, largest)
    tl.store(top + out, first)


def summarise(
    b: Tensor, c: Tensor, start: int, tokens: Tensor, picked: Tensor, out: Stretches
) -> None:
    """A tile as stretches of `WIDTH` columns.

    Args:
        b: float32 ``[n, columns]``, base logits.
        c: the same of the candidate.
        start: token of the first column.
        tokens: int32 ``[n]``, the next tokens.
        picked: float32 ``[2, n]``, receives the next tokens' logits where they are among these.
        out: of as many stretches as that makes, filled.
    """
    rows, columns = b.shape
    _tile_kernel[(rows, triton.cdiv(columns, WIDTH))](
        b, c, b.stride(0), c.stride(0), tokens, picked, rows, start, columns,
        out.sums, out.tops, out.sums.stride(1), out.sums.stride(0), WIDTH=WIDTH,
        WHOLE=columns % WIDTH == 0, **OPTIONS,
    )  # fmt: skip


def llama_sums(b: Tensor, c: Tensor, start: int, encoding: Encoding) -> LlamaSums:
    """llama.cpp's sums of a tile; arguments as in `tile_torch.llama_sums`, but none destroyed."""
    rows, columns = b.shape
    count = triton.cdiv(columns, WIDTH)
    out = LlamaSums(
        torch.empty(rows, count, dtype=torch.float64, device=b.device),
        torch.empty(rows, count, dtype=torch.float32, device=b.device),
        torch.empty(rows, count, dtype=torch.int32, device=b.device),
    )
    _llama_kernel[(rows, count)](
        b, c, b.stride(0), c.stride(0), encoding.scale, encoding.inverse, encoding.smallest,
        encoding.low, encoding.log_mass, start, columns, out.kld, out.high, out.top, count,
        WIDTH=WIDTH, WHOLE=columns % WIDTH == 0, **OPTIONS | UNFUSED,
    )  # fmt: skip
    return out
