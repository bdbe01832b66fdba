"""The five most probable tokens of rows, against sorting all of them in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from kldcloud.divergence.base_rows import CodeRows, LogitRows
from kldcloud.divergence.kernel import NO_TOKEN, encode
from kldcloud.divergence.top_tokens import TOP, join_tops, top_of_base, top_of_logits

Floats = npt.NDArray[np.float64]


def log_probabilities(logits: npt.NDArray[np.float32]) -> Floats:
    wide = logits.astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    return wide - top - np.log(np.exp(wide - top).sum(axis=1, keepdims=True))


def rows(n: int, vocabulary: int, seed: int = 0) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 3, (n, vocabulary)) + rng.gumbel(0, 2, (n, 1))).astype(np.float32)


def nll(logits: npt.NDArray[np.float32], tokens: npt.NDArray[np.int32]) -> Floats:
    return -log_probabilities(logits)[np.arange(len(tokens)), tokens]


def sorted_tops(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    return np.argsort(-logits.astype(np.float64), axis=1, kind="stable")[:, :TOP]


@pytest.mark.parametrize("vocabulary", [5, 63, 64, 320, 321, 1000, 50_257])
def test_they_are_those_that_sorting_finds(vocabulary: int) -> None:
    logits = rows(12, vocabulary)
    tokens = np.arange(12, dtype=np.int32) % vocabulary
    picked = np.array([0, 3, 11])
    found = top_of_base(LogitRows(logits), picked, tokens, nll(logits, tokens))
    expected = sorted_tops(logits)[picked]
    assert found.tokens.tolist() == expected.tolist()
    shares = np.exp(log_probabilities(logits))[picked[:, None], expected]
    assert found.probabilities == pytest.approx(shares, rel=1e-6)


def test_of_equals_the_first_comes_first() -> None:
    logits = np.zeros((2, 1000), np.float32)
    logits[1, [900, 20, 500]] = 2.0
    found = top_of_logits(logits, np.arange(2), np.zeros(2, np.int32), np.log([1000.0, 1000.0]))
    assert found.tokens.tolist() == [[0, 1, 2, 3, 4], [20, 500, 900, 0, 1]]


def test_a_vocabulary_of_three_has_three() -> None:
    logits = rows(1, 3)
    tokens = np.array([1], np.int32)
    found = top_of_logits(logits, np.arange(1), tokens, nll(logits, tokens))
    assert sorted(found.tokens[0, :3].tolist()) == [0, 1, 2]
    assert found.tokens[0, 3:].tolist() == [NO_TOKEN] * 2
    assert found.probabilities[0].sum() == pytest.approx(1.0, rel=1e-6)
    assert found.probabilities[0, 3:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("vocabulary", [321, 32_000])
@pytest.mark.parametrize("exact", [True, False])
def test_codes_have_the_same_tokens_to_half_a_step(vocabulary: int, exact: bool) -> None:
    logits = rows(8, vocabulary, seed=2)
    tokens = np.zeros(8, np.int32)
    coded = encode(logits, tokens)
    # A llama.cpp base file has nothing beside its codes.
    base = coded if exact else CodeRows(coded.words, vocabulary)
    found = top_of_base(base, np.arange(8), tokens, nll(logits, tokens))
    expected = sorted_tops(logits)
    wanted = np.exp(log_probabilities(logits))
    # Two tokens within one step may change places.
    kept = np.take_along_axis(wanted, found.tokens.astype(np.int64), axis=1)
    best = np.take_along_axis(wanted, expected, axis=1)
    assert kept == pytest.approx(best, rel=16 / 65535)
    assert found.probabilities == pytest.approx(kept, rel=16 / 65535)


def test_joining_and_selecting_keep_the_order() -> None:
    logits = rows(6, 100)
    tokens = np.zeros(6, np.int32)
    whole = top_of_logits(logits, np.arange(6), tokens, nll(logits, tokens))
    parts = [whole.select(np.arange(2)), whole.select(np.arange(2, 6))]
    joined = join_tops(parts)
    assert joined.tokens.tolist() == whole.tokens.tolist()
    assert joined.probabilities.tolist() == whole.probabilities.tolist()
    assert join_tops([]).tokens.shape == (0, TOP)
