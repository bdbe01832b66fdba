"""Sides of a comparison for the tests of `divergence/linear`, and their logits in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from kldcloud.divergence.linear.side import LinearSide

F4 = npt.NDArray[np.float32]
I4 = npt.NDArray[np.int32]


def of_logits(logits: F4) -> LinearSide:
    """A side whose logits are exactly these: the states are the identity."""
    weight = torch.from_numpy(np.ascontiguousarray(logits.T))
    return LinearSide(torch.eye(len(logits)), weight)


def random_side(
    rows: int, vocabulary: int, width: int, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> LinearSide:
    """Normal logits, three nats wide."""
    random = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, width, generator=random)
    weight = torch.randn(vocabulary, width, generator=random) * (3 / width**0.5)
    return LinearSide(states.to(dtype), weight.to(dtype))


def quantised(side: LinearSide, noise: float, *, seed: int = 1) -> LinearSide:
    """A candidate: relative noise on the states and on the head."""
    random = torch.Generator().manual_seed(seed)

    def noisy(x: torch.Tensor) -> torch.Tensor:
        factors = 1 + noise * torch.randn(x.shape, generator=random)
        return (x.float() * factors).to(x.dtype)

    return replace(side, states=noisy(side.states), weight=noisy(side.weight))


def random_tokens(rows: int, vocabulary: int, *, seed: int = 2) -> I4:
    return np.random.default_rng(seed).integers(0, vocabulary, rows).astype(np.int32)


def dense_logits(side: LinearSide) -> npt.NDArray[np.float64]:
    """All logits, every operation in float64."""
    logits = side.states.double().numpy() @ side.weight.double().numpy().T
    if side.bias is not None:
        logits += side.bias.double().numpy()
    if side.scale is not None:
        logits *= side.scale
    if side.softcap is not None:
        logits = side.softcap * np.tanh(logits / side.softcap)
    return logits
