"""Products and sums in one Triton kernel: logits live in registers and are never written.

A program makes a block of both sides' logits, 128 rows of 128 tokens, one product after the other,
and sums it up. The tile kernel has the faster product (the vendor's) and writes and reads 16 bytes
an entry for it; this one saves those. On an H100 that is 5 ps against 4 d / 600 TFLOP/s = 14 ps for
the products at d = 2048 (reckoned, not measured), so the fewer the dimensions, the more there is to
win here. Not chosen by itself: `benchmarks/gpu.py` measures both.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kldcloud.divergence.linear.blocks_triton import LARGEST, block_sums, first_of, store_sums
from kldcloud.divergence.linear.side import LinearSide
from kldcloud.divergence.linear.stretches import Stretches

WIDTH = 128
"""Columns of a stretch, and of a program's block."""
MOST_ROWS = 128
LEAST_ROWS = 16
"""The least a tensor core multiplies."""
DEPTH = 64
OPTIONS = {"num_warps": 8, "num_stages": 4, "enable_fp_fusion": True}
"""Two blocks of float32 take 128 registers of each of 256 threads, the sums the rest: ptxas puts
540 bytes a thread aside (sm_90a), once a block. Narrower blocks spill nothing and feed the tensor
cores worse."""

TANH_SERIES_UP_TO = tl.constexpr(0.25)


@triton.jit
def _product(states, head, stride, head_stride, row, token, width,
             ROWS: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    states += row.to(tl.int64)[:, None] * stride
    head += token.to(tl.int64)[None, :] * head_stride
    for start in range(0, width, DEPTH):
        at = start + tl.arange(0, DEPTH)
        x = tl.load(states + at[None, :], mask=(at < width)[None, :], other=0.0)
        w = tl.load(head + at[:, None], mask=(at < width)[:, None], other=0.0)
        total = tl.dot(x, w, total)
    return total


@triton.jit
def _tanh(x):
    """To about 2e-7 of the value: the series where 1 - e^-2x would cancel."""
    square = x * x
    near = -17.0 / 315.0 + square * (62.0 / 2835.0)
    near = x + x * square * (-1.0 / 3.0 + square * (2.0 / 15.0 + square * near))
    t = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - t) / (1.0 + t)
    far = tl.where(x < 0, -far, far)
    # NaN is not small, so it stays.
    return tl.where(tl.abs(x) < TANH_SERIES_UP_TO, near, far)


@triton.jit
def _finished(x, bias, token, scale, cap,
              BIAS: tl.constexpr, SCALE: tl.constexpr, CAP: tl.constexpr):  # fmt: skip
    """Logits from products: what `LinearSide` says comes after the head."""
    if BIAS:
        x += tl.load(bias + token).to(tl.float32)[None, :]
    if SCALE:
        x *= scale
    if CAP:
        x = cap * _tanh(x / cap)
    return x


@triton.jit
def _fused_kernel(states_b, head_b, bias_b, stride_b, head_stride_b, width_b, scale_b, cap_b,
                  states_c, head_c, bias_c, stride_c, head_stride_c, width_c, scale_c, cap_c,
                  tokens, picked, rows, start, stop, sums, tops, stride, plane,
                  BIAS_B: tl.constexpr, SCALE_B: tl.constexpr, CAP_B: tl.constexpr,
                  BIAS_C: tl.constexpr, SCALE_C: tl.constexpr, CAP_C: tl.constexpr,
                  ROWS: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    # Programs side by side share a piece of the heads, which are larger than the states.
    blocks = tl.cdiv(rows, ROWS)
    stretch = tl.program_id(0) // blocks
    row = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    column = start + stretch * WIDTH + tl.arange(0, WIDTH)
    valid, inside = row < rows, (column < stop)[None, :]
    # Beyond the last row or token, the last is read again.
    some_row, token = tl.minimum(row, rows - 1), tl.minimum(column, stop - 1)
    b = _product(states_b, head_b, stride_b, head_stride_b, some_row, token, width_b,
                 ROWS, WIDTH, DEPTH)  # fmt: skip
    c = _product(states_c, head_c, stride_c, head_stride_c, some_row, token, width_c,
                 ROWS, WIDTH, DEPTH)  # fmt: skip
    b = _finished(b, bias_b, token, scale_b, cap_b, BIAS_B, SCALE_B, CAP_B)
    c = _finished(c, bias_c, token, scale_c, cap_c, BIAS_C, SCALE_C, CAP_C)
    following = tl.load(tokens + some_row)
    here = valid[:, None] & inside & (column[None, :] == following[:, None])
    place = picked + row[:, None] + tl.zeros([1, WIDTH], tl.int32)
    tl.store(place, b, mask=here)
    tl.store(place + rows, c, mask=here)
    b, c = tl.where(inside, b, -LARGEST), tl.where(inside, c, -LARGEST)
    high_b, high_c = tl.max(b, axis=1), tl.max(c, axis=1)
    low = tl.min(tl.where(inside, b, LARGEST), axis=1)
    top_b, top_c = first_of(b, high_b, column[None, :]), first_of(c, high_c, column[None, :])
    mass, log_ratio, forward, reverse, drift, weighted = block_sums(b, c, high_b, high_c)
    store_sums(sums, tops, plane, row.to(tl.int64) * stride + stretch, valid,
               high_b, high_c, low, top_b, top_c,
               mass, log_ratio, forward, reverse, drift, weighted)  # fmt: skip


def summarise(
    base: LinearSide,
    candidate: LinearSide,
    start: int,
    stop: int,
    tokens: Tensor,
    picked: Tensor,
    out: Stretches,
) -> None:
    """The tokens ``start..stop`` as stretches of `WIDTH`.

    Args:
        base: n rows, states and head of one half-precision dtype.
        candidate: the same rows, likewise.
        start: first token.
        stop: the token after the last.
        tokens: int32 ``[n]``, the next tokens.
        picked: float32 ``[2, n]``, receives the next tokens' logits where they are among these.
        out: of as many stretches as that makes, filled.
    """
    rows = base.rows
    block = min(MOST_ROWS, max(LEAST_ROWS, triton.next_power_of_2(rows)))
    grid = (triton.cdiv(rows, block) * triton.cdiv(stop - start, WIDTH),)
    _fused_kernel[grid](
        *_arguments(base), *_arguments(candidate), tokens, picked, rows, start, stop,
        out.sums, out.tops, out.sums.stride(1), out.sums.stride(0),
        *_flags(base), *_flags(candidate),
        ROWS=block, WIDTH=WIDTH, DEPTH=DEPTH, **OPTIONS,
    )  # fmt: skip


def _arguments(side: LinearSide) -> tuple[Tensor | int | float, ...]:
    states, weight = _contiguous(side.states), _contiguous(side.weight)
    # What a flag leaves out is still an argument: its place holds a pointer or a number.
    bias = weight if side.bias is None else side.bias
    return (
        states, weight, bias, states.stride(0), weight.stride(0), side.width,
        side.scale or 1.0, side.softcap or 1.0,
    )  # fmt: skip


def _flags(side: LinearSide) -> tuple[bool, bool, bool]:
    return side.bias is not None, side.scale is not None, side.softcap is not None


def _contiguous(rows: Tensor) -> Tensor:
    """As it is, if each row lies in one piece."""
    return rows if rows.stride(1) == 1 else rows.contiguous()
