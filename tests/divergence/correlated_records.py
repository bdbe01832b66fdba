"""Token records as text gives them: skewed, alike within a chunk, and more alike side by side."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kldcloud.divergence.records import TokenRecords

ROWS = 31

Floats = npt.NDArray[np.float64]


def records(
    chunks: int, *, seed: int, candidate: int = 0, tail: float = 1.0, worse: float = 1.0
) -> TokenRecords:
    """Records of one candidate.

    The variances of chunks' means over what independent positions would give them, and their
    skewness, are like those of SmolLM2-135M at Q8_0 to Q5_K_M on Python's reference manual, where
    they are 3.6 to 4.7 and 0.5 to 0.8 for divergences, 6 to 8 for negative log-likelihoods, 13 to
    15 for entropies, 1 to 2 for all else; more skewed, for there are fewer positions in a chunk.

    Args:
        chunks: how many; they are independent of one another.
        seed: of the text and the base.
        candidate: which one of those measured on it.
        tail: sigma of the lognormal distribution of divergences.
        worse: times all divergences.
    """
    text = np.random.default_rng(seed)
    random = np.random.default_rng((seed, 1 + candidate))  # a trailing 0 would be no other seed
    shape = (chunks, ROWS)
    hard = _alike(text, shape)
    nll_base = 2.0 * np.exp(0.9 * hard - 0.4)
    entropy = 2.2 * np.exp(0.3 * hard + 0.3 * _alike(text, shape))
    kld = 0.02 * worse * np.exp(tail * (0.5 * hard + 0.87 * _alike(random, shape)) - tail**2 / 2)
    off = np.sqrt(kld) * random.normal(size=shape)
    nll = np.maximum(nll_base + kld + off, 1e-6)
    flipped = random.random(shape) < np.minimum(0.9, 0.5 * np.sqrt(kld))
    none = np.full(chunks * ROWS, np.nan)
    return TokenRecords(
        chunk=np.repeat(np.arange(chunks, dtype=np.int32), ROWS),
        position=np.tile(np.arange(ROWS, 2 * ROWS, dtype=np.int32), chunks),
        token=np.zeros(chunks * ROWS, np.int32),
        kld=kld.ravel(),
        reverse_kld=(kld * np.exp(0.1 * random.normal(size=shape))).ravel(),
        nll=nll.ravel(),
        nll_base=nll_base.ravel(),
        entropy_base=entropy.ravel(),
        top=flipped.astype(np.int32).ravel(),
        top_base=np.zeros(chunks * ROWS, np.int32),
        llama_kld=none,
        llama_nll=none.astype(np.float32),
        llama_nll_base=none.astype(np.float32),
        llama_top_base=np.full(chunks * ROWS, -1, np.int32),
    )


def _alike(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Standard normal: a part that a chunk shares, and one that its neighbours pass on."""
    shared, passed_on = 0.4, 0.6
    steps = random.normal(size=shape)
    for at in range(1, shape[1]):
        steps[:, at] = passed_on * steps[:, at - 1] + np.sqrt(1 - passed_on**2) * steps[:, at]
    own: Floats = np.sqrt(1 - shared**2) * steps
    return own + shared * random.normal(size=(shape[0], 1))
