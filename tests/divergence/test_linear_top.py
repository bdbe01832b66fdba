"""The most probable tokens from states and a head, against those of the logits themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from linear_sides import dense_logits, of_logits, random_side

from kldcloud.divergence.kernel import NO_TOKEN
from kldcloud.divergence.linear import top
from kldcloud.divergence.linear.side import LinearSide
from kldcloud.divergence.linear.top import begin_top_tokens
from kldcloud.divergence.top_tokens import TOP, TopTokens, top_of_logits


def tops(side: LinearSide, rows: torch.Tensor, vocabulary: int | None = None) -> TopTokens:
    """With log-sum-exps of all rows, as the statistics have them."""
    whole = torch.from_numpy(dense_logits(side))[:, :vocabulary].logsumexp(-1)
    return begin_top_tokens(side, rows, whole, vocabulary=vocabulary).result()


@pytest.mark.parametrize("vocabulary", [5, 63, 64, 65, 321, 50_257])
def test_they_are_those_of_the_logits(vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "_COLUMNS", 64 if vocabulary < 1000 else 8192)
    logits = np.random.default_rng(vocabulary).normal(0, 3, (12, vocabulary)).astype(np.float32)
    tokens = np.arange(12, dtype=np.int32) % vocabulary
    rows = np.array([0, 3, 11])
    wide = logits.astype(np.float64)
    nll = np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(12), tokens]
    wanted = top_of_logits(logits, rows, tokens, nll)
    found = tops(of_logits(logits), torch.from_numpy(rows))
    assert found.tokens.dtype == wanted.tokens.dtype
    assert found.probabilities.dtype == wanted.probabilities.dtype
    assert found.tokens.tolist() == wanted.tokens.tolist()
    assert found.probabilities == pytest.approx(wanted.probabilities, rel=1e-6)


def test_of_equals_the_first_comes_first_across_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "_COLUMNS", 100)
    logits = np.zeros((2, 1000), np.float32)
    logits[1, [900, 20, 500]] = 2.0
    found = tops(of_logits(logits), torch.arange(2))
    assert found.tokens.tolist() == [[0, 1, 2, 3, 4], [20, 500, 900, 0, 1]]


@pytest.mark.parametrize("vocabulary", [4, 64, 320, 321, 5000])
def test_many_equals_and_both_zeros_come_in_the_order_of_tokens(vocabulary: int) -> None:
    random = np.random.default_rng(vocabulary)
    logits = random.integers(-2, 2, (20, vocabulary)).astype(np.float32)
    logits[random.random(logits.shape) < 0.3] = -0.0
    logits[0], logits[1] = -3.0, -np.arange(vocabulary)
    found = tops(of_logits(logits), torch.arange(20))
    wanted = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
    assert found.tokens[:, : wanted.shape[1]].tolist() == wanted.tolist()


def test_a_vocabulary_of_three_has_three() -> None:
    side = random_side(2, 40, 8)
    found = tops(side, torch.arange(2), vocabulary=3)
    assert sorted(found.tokens[0, :3].tolist()) == [0, 1, 2]
    assert found.tokens[:, 3:].tolist() == [[NO_TOKEN] * 2] * 2
    assert found.probabilities[:, 3:].tolist() == [[0.0, 0.0]] * 2
    assert found.probabilities.sum(axis=1) == pytest.approx([1.0, 1.0], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bias_cap_and_half_precision_are_seen(dtype: torch.dtype) -> None:
    bias = torch.zeros(70_000)
    bias[[69_000, 40_000]] = 30.0
    side = replace(random_side(3, 70_000, 33, dtype=dtype), bias=bias, softcap=20.0, scale=0.9)
    found = tops(side, torch.tensor([2, 0]))
    logits = dense_logits(side)[[2, 0]]
    assert found.tokens.tolist() == np.argsort(-logits, axis=1)[:, :TOP].tolist()
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wanted = np.take_along_axis(shares, found.tokens.astype(np.int64), axis=1)
    assert found.probabilities == pytest.approx(wanted, rel=1e-4)
    assert set(found.tokens[0, :2].tolist()) == {69_000, 40_000}
