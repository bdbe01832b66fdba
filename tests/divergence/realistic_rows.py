"""Rows of logits as language models give them, for the kernel's tests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F4 = npt.NDArray[np.float32]
I4 = npt.NDArray[np.int32]


def base_logits(rows: int, vocabulary: int, *, seed: int = 0, spread: float = 30.0) -> F4:
    """float32 ``[rows, V]``: a wide, low bulk and a few tall tokens, `spread` nats in all."""
    rng = np.random.default_rng(seed)
    bulk = 2.2 * rng.standard_t(7, (rows, vocabulary))
    bulk = np.clip(bulk, -spread / 2, spread / 4)
    tall = max(1, min(40, vocabulary // 8))
    for row in bulk:
        at = rng.choice(vocabulary, tall, replace=False)
        row[at] = spread / 2 - rng.exponential(rng.uniform(0.5, 3), tall)
    return (bulk - 3).astype(np.float32)


def candidate_logits(base: F4, sigma: float, *, seed: int = 1) -> F4:
    """The base with Gaussian noise on each logit, and a shift that softmax does not see."""
    rng = np.random.default_rng(seed)
    noise = sigma * rng.standard_normal(base.shape)
    return (base + noise + 1.7).astype(np.float32)


def next_tokens(base: F4, *, seed: int = 2) -> I4:
    """Half of them the base's top, half of them any token."""
    tokens = np.random.default_rng(seed).integers(0, base.shape[1], len(base))
    tokens[::2] = base[::2].argmax(axis=1)
    return tokens.astype(np.int32)
