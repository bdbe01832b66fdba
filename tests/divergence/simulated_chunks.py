"""Mean divergences of chunks whose true means are known: light and heavy tails, correlated tokens.

Each simulation returns float64 ``[corpora, candidates, chunks]`` whose expectations are the levels
of the candidates. What a chunk does to all of them alike is far more than what it does to one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kldcloud.divergence.sequential import Decision, Rule, decide

ROWS = 255
RANKED = Rule("ranked", None, 0.95, 20)
Floats = npt.NDArray[np.float64]
Random = np.random.Generator


def light(random: Random, corpora: int, levels: Sequence[float], chunks: int) -> Floats:
    """Of one text, evenly hard: the chunks' skewness is 0.4."""
    shared = random.gamma(40.0, 1 / 40, (corpora, 1, chunks))
    own = random.gamma(100.0, 1 / 100, (corpora, len(levels), chunks))
    return shared * own * np.array(levels)[:, None]


def heavy(random: Random, corpora: int, levels: Sequence[float], chunks: int) -> Floats:
    """Of mixed texts: lognormal with a skewness of 4, differences of candidates too."""
    shared = _lognormal(random, 0.8, (corpora, 1, chunks))
    own = _lognormal(random, 0.5, (corpora, len(levels), chunks))
    return shared * own * np.array(levels)[:, None]


def tokens(random: Random, corpora: int, levels: Sequence[float], chunks: int) -> Floats:
    """Means of 24 skewed tokens, alike within a chunk and more so side by side."""
    shape = (corpora, len(levels), chunks, 24)
    shared = random.normal(size=(corpora, 1, chunks, 1)).astype(np.float32)
    hard = _passed_on(random, (corpora, 1, chunks, 24), 0.6)
    own = _passed_on(random, shape, 0.5)
    logarithm = 0.7 * shared + 0.9 * hard + 0.6 * own
    means = np.exp(logarithm - (0.7**2 + 0.9**2 + 0.6**2) / 2).mean(axis=-1)
    return means.astype(np.float64) * np.array(levels)[:, None]


def unlike(random: Random, corpora: int, levels: Sequence[float], chunks: int) -> Floats:
    """Two candidates of which the first is hit by few chunks, but hard, and the second evenly."""
    first, second = levels
    return np.concatenate(
        [
            first * random.gamma(1.0, 1.0, (corpora, 1, chunks)),
            second * random.gamma(20.0, 1 / 20, (corpora, 1, chunks)),
        ],
        axis=1,
    )


def precise(half_width: float, confidence: float = 0.95) -> Rule:
    return Rule("precise", half_width, confidence, 20)


def decided(rule: Rule, chunk_means: Floats, of: int | None = None) -> Decision:
    """What a rule comes to on one corpus of `of` chunks, or on all that are given."""
    chunks = chunk_means.shape[1]
    found = decide(rule, chunk_means, [ROWS] * chunks, of or chunks)
    assert found is not None
    return found


def _lognormal(random: Random, sigma: float, shape: tuple[int, ...]) -> Floats:
    return random.lognormal(-(sigma**2) / 2, sigma, shape)


def _passed_on(random: Random, shape: tuple[int, ...], share: float) -> npt.NDArray[np.float32]:
    steps = random.normal(size=shape).astype(np.float32)
    for at in range(1, shape[-1]):
        steps[..., at] = share * steps[..., at - 1] + (1 - share**2) ** 0.5 * steps[..., at]
    return steps
