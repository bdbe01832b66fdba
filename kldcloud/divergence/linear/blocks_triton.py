"""What Triton kernels of divergences share; formulas in `stretches`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kldcloud.divergence.linear.stretches import PHI

LOG2E = tl.constexpr(1.4426950408889634)
NOWHERE = tl.constexpr(2**31 - 1)
LARGEST = tl.constexpr(torch.finfo(torch.float32).max)

P0, P1, P2, P3, P4, P5, P6, P7 = (tl.constexpr(each) for each in PHI)


@triton.jit
def phi(u, square):
    """e^u - 1 - u where |u| <= 1, given its square too; anything elsewhere."""
    rest = (((P7 * u + P6) * u + P5) * u + P4) * u + P3
    return square * (((rest * u + P2) * u + P1) * u + P0)
