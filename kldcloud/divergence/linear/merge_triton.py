"""All stretches of a row as the whole row, in float64, in one Triton kernel.

What `stretches.Pieces` does in some sixty operations of PyTorch, each with its launch: formulas and
reasons are there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kldcloud.divergence.linear.blocks_triton import LARGEST
from kldcloud.divergence.linear.stretches import EVEN, ODD, REFINED_BELOW, Pieces, Stretches

OPTIONS = {"num_warps": 4}
E2, E4, E6, E8, E10 = (tl.constexpr(each) for each in EVEN)
O3, O5, O7, O9 = (tl.constexpr(each) for each in ODD)
REFINED = tl.constexpr(REFINED_BELOW)


@triton.jit
def _double(sums, plane: tl.constexpr, size, at, here, other: tl.constexpr):
    return tl.load(sums + plane * size + at, mask=here, other=other).to(tl.float64)


@triton.jit
def _log_sum(x):
    high = tl.max(x, axis=0)
    return high + tl.log(tl.sum(tl.exp(x - high), axis=0))


@triton.jit
def _merge_kernel(sums, tops, size, stride, count, doubles, singles, integers, rows,
                  WIDTH: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, WIDTH)
    here, at = lanes < count, row * stride + lanes
    # Beyond the last stretch, shares of nothing.
    high_b = tl.load(sums + at, mask=here, other=-LARGEST)
    high_c = tl.load(sums + size + at, mask=here, other=-LARGEST)
    low = tl.min(tl.load(sums + 2 * size + at, mask=here, other=LARGEST), axis=0)
    mass = _double(sums, 3, size, at, here, 1.0)
    ratio = _double(sums, 4, size, at, here, 0.0)
    forward = _double(sums, 5, size, at, here, 0.0)
    reverse = _double(sums, 6, size, at, here, 0.0)
    drift = _double(sums, 7, size, at, here, 0.0)
    weighted = _double(sums, 8, size, at, here, 0.0)
    refined = tl.log(1.0 + (forward + drift) / mass)
    ratio += tl.where(forward < REFINED * mass, refined, 0.0)
    log_mass = tl.log(mass)
    b, c = high_b.to(tl.float64) + log_mass, high_c.to(tl.float64) + (log_mass + ratio)
    whole_b, whole_c = _log_sum(b), _log_sum(c)
    b, c = b - whole_b, c - whole_c
    w, v = tl.exp(b), tl.exp(c)
    u = c - b
    square = u * u
    even = (((E10 * square + E8) * square + E6) * square + E4) * square + E2
    odd = ((((O9 * square + O7) * square + O5) * square) + O3) * u
    near = square <= 1.0
    between = tl.where(near, w * square * (even + odd), v - w * (1.0 + u))
    back = tl.where(near, v * square * (even - odd), w - v * (1.0 - u))
    doubles += row
    tl.store(doubles, whole_b)
    tl.store(doubles + rows, whole_c)
    tl.store(doubles + 2 * rows, tl.sum(w * (forward / mass) + between, axis=0))
    tl.store(doubles + 3 * rows, tl.sum(v * (reverse / mass) + back, axis=0))
    entropy = tl.sum(w * (log_mass - weighted / mass - b), axis=0)
    tl.store(doubles + 4 * rows, entropy)
    most_b, most_c = tl.max(high_b, axis=0), tl.max(high_c, axis=0)
    # A maximum passes over NaN, which stands for a logit that is not finite.
    broken_b = tl.max((~(high_b <= LARGEST)).to(tl.int32), axis=0) > 0
    broken_c = tl.max((~(high_c <= LARGEST)).to(tl.int32), axis=0) > 0
    singles += row
    tl.store(singles, tl.where(broken_b, float("nan"), most_b))
    tl.store(singles + rows, tl.where(broken_c, float("nan"), most_c))
    tl.store(singles + 2 * rows, low)
    # The first of equals.
    first_b = tl.min(tl.where(high_b == most_b, lanes, WIDTH - 1), axis=0)
    first_c = tl.min(tl.where(high_c == most_c, lanes, WIDTH - 1), axis=0)
    integers += row
    tl.store(integers, tl.load(tops + row * stride + first_b, mask=first_b < count, other=0))
    top_c = tl.load(tops + size + row * stride + first_c, mask=first_c < count, other=0)
    tl.store(integers + rows, top_c)


def merge(stretches: Stretches) -> Pieces:
    """All stretches, t of them, as one piece, t = 1; they are contiguous."""
    _, rows, count = stretches.sums.shape
    device = stretches.sums.device
    doubles = torch.empty(5, rows, 1, dtype=torch.float64, device=device)
    singles = torch.empty(3, rows, 1, dtype=torch.float32, device=device)
    integers = torch.empty(2, rows, 1, dtype=torch.int32, device=device)
    _merge_kernel[(rows,)](
        stretches.sums, stretches.tops, rows * count, count, count, doubles, singles, integers,
        rows, WIDTH=triton.next_power_of_2(count), **OPTIONS,
    )  # fmt: skip
    return Pieces(
        doubles[:2], doubles[2], doubles[3], doubles[4], singles[:2], singles[2], integers
    )
