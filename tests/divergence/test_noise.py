"""Perplexity hides damage that divergences show: the noise experiment of arXiv:2407.09141.

There, symmetric Gaussian noise on log-probabilities leaves perplexity where it is, since a token
gains as often as it loses, while the model gets worse. A distribution must sum to one, so here the
following token keeps its noisy log-probability and the rest is scaled to what is left. Scaling
everything instead lowers every log-probability by the logarithm of the noisy sum, whose mean is
the mean KLD: the second test.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from synthetic_records import identity

from kldcloud.divergence.partial import Partial
from kldcloud.divergence.records import TokenRecords
from kldcloud.divergence.summary import Reduction, ResultSummary

VOCABULARY = 2000
CHUNKS, ROWS = 30, 50


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def noisy(
    rng: np.random.Generator, base: np.ndarray, token: np.ndarray, sigma: float
) -> np.ndarray:
    """Noise on all log-probabilities; that of the following token is kept, the rest makes room."""
    row = np.arange(len(base))
    candidate = base + rng.normal(0, sigma, base.shape)
    kept = candidate[row, token]
    assert kept.max() < 0
    candidate[row, token] = -np.inf
    candidate = log_softmax(candidate) + np.log1p(-np.exp(kept))[:, np.newaxis]
    candidate[row, token] = kept
    return candidate


def measured(
    base: np.ndarray, candidate: np.ndarray, token: np.ndarray, chunk: int
) -> TokenRecords:
    """Records of one chunk from float64 log-probabilities ``[rows, V]``, term by term."""
    n = len(token)
    row = np.arange(n)
    np.testing.assert_allclose(np.exp(candidate).sum(axis=1), 1, rtol=1e-12)
    off = np.full(n, np.nan)
    return TokenRecords(
        chunk=np.full(n, chunk, np.int32),
        position=np.arange(n, dtype=np.int32),
        token=token.astype(np.int32),
        kld=(np.exp(base) * (base - candidate)).sum(axis=1),
        reverse_kld=(np.exp(candidate) * (candidate - base)).sum(axis=1),
        nll=-candidate[row, token],
        nll_base=-base[row, token],
        entropy_base=-(np.exp(base) * base).sum(axis=1),
        top=candidate.argmax(axis=1).astype(np.int32),
        top_base=base.argmax(axis=1).astype(np.int32),
        llama_kld=off,
        llama_nll=off.astype(np.float32),
        llama_nll_base=off.astype(np.float32),
        llama_top_base=np.full(n, -1, np.int32),
    )


def experiment(sigma: float, *, scale_everything: bool = False) -> ResultSummary:
    rng = np.random.default_rng(2407)
    reduction = Reduction(CHUNKS)
    for chunk in range(CHUNKS):
        base = log_softmax(1.6 * rng.normal(size=(ROWS, VOCABULARY)))
        # Gumbel's trick: the token is drawn from the base's own distribution.
        token = (base + rng.gumbel(size=base.shape)).argmax(axis=1)
        if scale_everything:
            candidate = log_softmax(base + rng.normal(0, sigma, base.shape))
        else:
            candidate = noisy(rng, base, token, sigma)
        source = measured(base, candidate, token, chunk)
        reduction.add(Partial.from_records(source, identity=identity(chunk, 1)))
    return reduction.result()


def test_symmetric_noise_leaves_perplexity_and_shows_in_kld_and_same_top() -> None:
    summaries = [experiment(sigma) for sigma in (0.05, 0.2, 0.5)]
    for summary in summaries:
        ratio = summary.perplexity.log_ratio
        assert ratio.interval95 is not None
        assert ratio.interval95.low <= 0 <= ratio.interval95.high
        assert abs(summary.perplexity.ratio.value - 1) < 0.03
    means = [summary.kld_mean.value for summary in summaries]
    tops = [summary.same_top.value for summary in summaries]
    assert 0 < 10 * means[0] < means[1]
    assert 4 * means[1] < means[2]
    assert 0.97 > tops[0] > tops[1] + 0.05 > tops[2] + 0.1
    # What perplexity's own interval cannot tell from zero, KLD's excludes by far.
    for summary in summaries:
        assert summary.kld_mean.error is not None
        assert summary.kld_mean.value > 20 * summary.kld_mean.error


@pytest.mark.parametrize("sigma", [0.2, 0.5])
def test_noise_that_is_scaled_as_a_whole_moves_log_perplexity_by_the_kld(sigma: float) -> None:
    summary = experiment(sigma, scale_everything=True)
    interval = summary.perplexity.log_ratio.interval95
    assert interval is not None
    assert interval.low <= summary.kld_mean.value <= interval.high
    assert summary.kld_mean.value == pytest.approx(sigma**2 / 2, rel=0.1)
    assert math.log(summary.perplexity.ratio.value) > 0
