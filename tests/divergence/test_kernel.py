"""The kernel from base logits: each token against float64, and what it refuses."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from realistic_rows import base_logits, candidate_logits, next_tokens

from kldcloud.divergence import kernel
from kldcloud.divergence.base_rows import LogitRows
from kldcloud.divergence.kernel import TokenStatistics, token_statistics
from kldcloud.errors import EngineError, FormatError
from tests.reference import float64_token_statistics

VOCABULARIES = (5, 6, 320, 511, 512, 513, 2047, 2048, 2049, 4097, 49_152, 151_936)


@pytest.fixture
def numpy_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("KLDCLOUD_KERNEL", "numpy")
    kernel.implementation.cache_clear()
    yield
    kernel.implementation.cache_clear()


def assert_close(found: np.ndarray, truth: np.ndarray, absolute: float, relative: float) -> None:
    """Within `absolute` or `relative`, whichever allows more."""
    excess = np.abs(found - truth) - np.maximum(absolute, relative * np.abs(truth))
    worst = int(excess.argmax())
    assert excess[worst] <= 0, f"position {worst}: {found[worst]!r} for {truth[worst]!r}"


def assert_equals_float64(found: TokenStatistics, base: np.ndarray, candidate: np.ndarray,
                          tokens: np.ndarray) -> None:  # fmt: skip
    truth = float64_token_statistics(base, candidate, tokens)
    assert_close(found.kld, truth["kld"], 2e-8, 1e-5)
    assert_close(found.reverse_kld, truth["reverse_kld"], 2e-8, 1e-5)
    # A candidate that moves its top far from the base's is reckoned from an anchor that is far off.
    assert_close(found.nll, truth["nll"], 1.5e-6 if truth["kld"].mean() < 1 else 1e-5, 1e-7)
    assert_close(found.nll_base, truth["nll_base"], 1.5e-6, 1e-7)
    assert_close(found.entropy_base, truth["entropy_base"], 1e-6, 1e-6)
    np.testing.assert_array_equal(found.top, truth["top"])
    np.testing.assert_array_equal(found.top_base, truth["top_base"])


def same_bits(a: TokenStatistics, b: TokenStatistics) -> None:
    for field in dataclasses.fields(TokenStatistics):
        left, right = getattr(a, field.name), getattr(b, field.name)
        assert left.dtype == right.dtype
        assert left.tobytes() == right.tobytes(), field.name


def test_numba_does_the_rows_where_it_loads() -> None:
    assert kernel.implementation().__name__.endswith("rows_numba")


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_each_token_agrees_with_float64(vocabulary: int) -> None:
    rows = 12 if vocabulary > 10_000 else 60
    base = base_logits(rows, vocabulary, seed=vocabulary)
    candidate = candidate_logits(base, 0.2)
    tokens = next_tokens(base)
    found = token_statistics(LogitRows(base), candidate, tokens)
    assert_equals_float64(found, base, candidate, tokens)


@pytest.mark.parametrize("spread", [8.0, 16.0, 25.0, 40.0])
@pytest.mark.parametrize("sigma", [1e-4, 1e-3, 1e-2, 0.1, 1.0, 4.0])
def test_each_token_agrees_with_float64_from_tiny_divergences_to_large(
    spread: float, sigma: float
) -> None:
    base = base_logits(20, 8191, spread=spread)
    candidate = candidate_logits(base, sigma)
    tokens = next_tokens(base)
    found = token_statistics(LogitRows(base), candidate, tokens, llama_compat=False)
    assert_equals_float64(found, base, candidate, tokens)


def test_those_divergences_do_span_1e_9_to_10_nats() -> None:
    base = base_logits(20, 8191, spread=25.0)
    tokens = next_tokens(base)
    means = [
        float(token_statistics(LogitRows(base), candidate_logits(base, sigma), tokens).kld.mean())
        for sigma in (1e-4, 6.0)
    ]
    assert 1e-10 < means[0] < 1e-8
    assert means[1] > 3


@pytest.mark.parametrize("vocabulary", [320, 49_152, 151_936])
def test_a_model_against_itself_diverges_by_nothing(vocabulary: int) -> None:
    base = base_logits(16, vocabulary)
    found = token_statistics(LogitRows(base), base.copy(), next_tokens(base))
    assert abs(found.kld.mean()) <= 1e-8
    assert abs(found.reverse_kld.mean()) <= 1e-8
    assert (found.top == found.top_base).all()


def test_rows_of_equal_logits_are_uniform() -> None:
    base = np.full((3, 700), 4.5, np.float32)
    candidate = np.full((3, 700), -2.0, np.float32)
    candidate[1:] += np.linspace(0, 3, 700, dtype=np.float32)
    tokens = np.array([0, 699, 7], np.int32)
    found = token_statistics(LogitRows(base), candidate, tokens)
    assert_equals_float64(found, base, candidate, tokens)
    assert found.entropy_base == pytest.approx(np.log(700), abs=1e-6)


def test_of_equal_maxima_the_first_is_the_top() -> None:
    base = base_logits(4, 6000)
    candidate = candidate_logits(base, 0.1)
    for row, places in enumerate([(0, 5999), (2047, 2048), (511, 512), (17, 18)]):
        base[row, list(places)] = 50
        candidate[row, [place - row % 2 for place in places]] = 60
    tokens = next_tokens(base)
    found = token_statistics(LogitRows(base), candidate, tokens)
    assert found.top_base.tolist() == [0, 2047, 511, 17]
    assert found.top.tolist() == [0, 2046, 511, 16]
    assert found.llama_top_base.tolist() == [0, 2047, 511, 17]


def test_minus_zero_and_zero_are_equal_maxima() -> None:
    base = np.full((2, 40), -3, np.float32)
    base[0, [9, 30]] = [-0.0, 0.0]
    base[1, [9, 30]] = [0.0, -0.0]
    found = token_statistics(LogitRows(base), base.copy(), np.zeros(2, np.int32))
    assert found.top.tolist() == [9, 9]
    assert found.top_base.tolist() == [9, 9]


@pytest.mark.parametrize("factor", [0.0, 1.0, 10.0])
def test_broken_candidates_are_still_measured_exactly(factor: float) -> None:
    base = base_logits(12, 3001, spread=20.0)
    candidate = factor * base
    at = np.random.default_rng(5).integers(0, 3001, 12)
    # Far above where the base has its top: from moderate to hundreds of nats.
    candidate[np.arange(12), at] += np.geomspace(10, 900, 12).astype(np.float32)
    tokens = next_tokens(base)
    found = token_statistics(LogitRows(base), candidate, tokens)
    assert_equals_float64(found, base, candidate, tokens)
    assert found.kld.max() > 500


@pytest.mark.parametrize("below", [60.0, 75.0, 1000.0, 1e4])
@pytest.mark.parametrize("believed", [-40.0, -1.0, 30.0])
def test_a_token_that_the_base_rules_out_counts_in_the_reverse_divergence(
    below: float, believed: float
) -> None:
    base = base_logits(8, 3001)
    candidate = candidate_logits(base, 0.1)
    at = base.argmin(axis=1)
    rows = np.arange(8)
    base[rows, at] = base.max(axis=1) - np.float32(below)
    candidate[rows, at] = candidate.max(axis=1) + np.float32(believed)
    tokens = next_tokens(base)
    found = token_statistics(LogitRows(base), candidate, tokens)
    assert_equals_float64(found, base, candidate, tokens)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 511, 2048, 2999])
def test_a_logit_that_is_not_finite_is_refused_with_its_position(bad: float, place: int) -> None:
    base = base_logits(6, 3000)
    candidate = base.copy()
    candidate[4, place] = bad
    with pytest.raises(EngineError, match="position 4 of the chunk"):
        token_statistics(LogitRows(base), candidate, next_tokens(base))


@pytest.mark.parametrize("token", [-1, 3000, 2**31 - 1])
def test_a_next_token_outside_the_vocabulary_is_refused(token: int) -> None:
    base = base_logits(3, 3000)
    tokens = next_tokens(base)
    tokens[1] = token
    with pytest.raises(FormatError, match="outside the vocabulary"):
        token_statistics(LogitRows(base), base, tokens)


def test_base_and_candidate_of_different_shape_are_refused() -> None:
    base = base_logits(3, 300)
    tokens = next_tokens(base)
    for logits, following in [
        (base[:2], tokens[:2]),
        (base[:, :299].copy(), tokens % 299),
        (base, tokens[:2]),
    ]:
        with pytest.raises(FormatError, match="base has 3 rows over 300 tokens"):
            token_statistics(LogitRows(base), logits, following)


def test_no_rows_give_no_statistics() -> None:
    nothing = np.empty((0, 300), np.float32)
    found = token_statistics(LogitRows(nothing), nothing, np.empty(0, np.int32), threads=2)
    assert found.kld.shape == found.top.shape == (0,)


def test_threads_and_slices_do_not_change_a_bit() -> None:
    base = base_logits(37, 5001)
    candidate = candidate_logits(base, 0.3)
    tokens = next_tokens(base)
    whole = token_statistics(LogitRows(base), candidate, tokens)
    for threads in (2, 4):
        same_bits(token_statistics(LogitRows(base), candidate, tokens, threads=threads), whole)
    one = [
        token_statistics(LogitRows(base[i : i + 1]), candidate[i : i + 1], tokens[i : i + 1])
        for i in range(37)
    ]
    assert np.concatenate([part.kld for part in one]).tobytes() == whole.kld.tobytes()
    assert np.concatenate([part.llama_kld for part in one]).tobytes() == whole.llama_kld.tobytes()


def test_the_exact_statistics_do_not_depend_on_llamas_being_asked_for() -> None:
    base = base_logits(9, 20_000)
    candidate = candidate_logits(base, 0.3)
    tokens = next_tokens(base)
    both = token_statistics(LogitRows(base), candidate, tokens)
    exact = token_statistics(LogitRows(base), candidate, tokens, llama_compat=False)
    for name in ("kld", "reverse_kld", "nll", "nll_base", "entropy_base", "top", "top_base"):
        assert getattr(both, name).tobytes() == getattr(exact, name).tobytes()
    assert np.isnan(exact.llama_kld).all()
    assert np.isnan(exact.llama_nll).all()
    assert (exact.llama_top_base == -1).all()


@pytest.mark.usefixtures("numpy_kernel")
def test_the_numpy_kernel_keeps_the_same_promises() -> None:
    assert kernel.implementation().__name__.endswith("row_numpy")
    base = base_logits(11, 3001)
    candidate = candidate_logits(base, 0.2)
    tokens = next_tokens(base)
    found = token_statistics(LogitRows(base), candidate, tokens, threads=2)
    assert_equals_float64(found, base, candidate, tokens)
    candidate[7, 3000] = np.nan
    with pytest.raises(EngineError, match="position 7 of the chunk"):
        token_statistics(LogitRows(base), candidate, tokens)


def test_without_numba_numpy_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.implementation.cache_clear()
    monkeypatch.delattr("kldcloud.divergence.rows_numba", raising=False)
    monkeypatch.setitem(sys.modules, "kldcloud.divergence.rows_numba", None)
    try:
        assert kernel.implementation().__name__.endswith("row_numpy")
    finally:
        kernel.implementation.cache_clear()


def test_symmetric_noise_leaves_perplexity_and_shows_in_kld_and_same_top() -> None:
    """The noise experiment of arXiv:2407.09141, from logits to statistics."""
    rng = np.random.default_rng(2407)
    rows, vocabulary = 1500, 2000
    base = (1.6 * rng.standard_normal((rows, vocabulary))).astype(np.float32)
    tokens = (base + rng.gumbel(size=base.shape)).argmax(axis=1).astype(np.int32)
    at = np.arange(rows)
    divergences, tops = [], []
    for sigma in (0.05, 0.2, 0.5):
        candidate = base + rng.normal(0, sigma, base.shape)
        # The next token keeps its noisy log-probability; the others share what that leaves.
        log_base = base[at, tokens] - np.log(np.exp(base.astype(np.float64)).sum(axis=1))
        kept = log_base + candidate[at, tokens] - base[at, tokens]
        candidate[at, tokens] = -np.inf
        others = np.log(np.exp(candidate).sum(axis=1))
        candidate[at, tokens] = kept + others - np.log1p(-np.exp(kept))
        found = token_statistics(LogitRows(base), candidate.astype(np.float32), tokens, threads=2)
        change = found.nll - found.nll_base
        error = change.std() / np.sqrt(rows)
        assert abs(change.mean()) < 3 * error < 0.05
        assert found.kld.mean() > 20 * found.kld.std() / np.sqrt(rows)
        divergences.append(found.kld.mean())
        tops.append((found.top == found.top_base).mean())
    assert 0 < 10 * divergences[0] < divergences[1] < divergences[2] / 4
    assert tops[0] > tops[1] + 0.05 > tops[2] + 0.1
