"""The kernel's llama.cpp columns: its own arithmetic, rounding for rounding."""

from __future__ import annotations

import numpy as np
import pytest
from realistic_rows import base_logits, candidate_logits, next_tokens

from kldcloud.divergence import row_numpy
from kldcloud.divergence.base_rows import CodeRows, LogitRows
from kldcloud.divergence.kernel import TokenStatistics, token_statistics
from tests.reference import decode_kld_rows, encode_kld_rows, llama_token_statistics


def both_ways(
    base: np.ndarray, candidate: np.ndarray, tokens: np.ndarray
) -> tuple[TokenStatistics, TokenStatistics]:
    """From codes, and from logits that are encoded on the fly."""
    codes = CodeRows(encode_kld_rows(base), base.shape[1])
    return (
        token_statistics(codes, candidate, tokens),
        token_statistics(LogitRows(base), candidate, tokens),
    )


@pytest.mark.parametrize("vocabulary", [5, 6, 320, 321, 1023, 1025, 4096, 16_383])
@pytest.mark.parametrize("spread", [10.0, 30.0])
def test_small_vocabularies_give_the_tools_figures_bit_for_bit(
    vocabulary: int, spread: float
) -> None:
    base = base_logits(40, vocabulary, seed=vocabulary, spread=spread)
    base[3] = 0.5  # equal logits
    candidate = candidate_logits(base, 0.3)
    tokens = next_tokens(base)
    truth = llama_token_statistics(encode_kld_rows(base), candidate, tokens, vocabulary)
    for found in both_ways(base, candidate, tokens):
        # The tool prints a KLD as the float that its double sum rounds to.
        np.testing.assert_array_equal(
            found.llama_kld.astype(np.float32), truth["kld"].astype(np.float32)
        )
        # One exponential in 30,000 lies so near the middle of two floats that it rounds otherwise.
        np.testing.assert_allclose(found.llama_kld, truth["kld"], rtol=1e-9, atol=1e-14)
        assert found.llama_nll.tobytes() == truth["nll"].tobytes()
        assert found.llama_nll_base.tobytes() == truth["nll_base"].tobytes()
        same = found.top == found.llama_top_base
        np.testing.assert_array_equal(same, truth["same_top"])


@pytest.mark.parametrize("vocabulary", [16_384, 49_152, 151_936, 248_320])
def test_large_vocabularies_agree_where_no_float_rounds_the_other_way(vocabulary: int) -> None:
    rows = 16 if vocabulary > 100_000 else 60
    base = base_logits(rows, vocabulary, seed=vocabulary)
    candidate = candidate_logits(base, 0.2)
    tokens = next_tokens(base)
    truth = llama_token_statistics(encode_kld_rows(base), candidate, tokens, vocabulary)
    for found in both_ways(base, candidate, tokens):
        # The log of a sum that is off by 1e-9 rounds to another float once in a hundred rows.
        alike = found.llama_nll == truth["nll"]
        assert alike.mean() > 0.9
        np.testing.assert_allclose(found.llama_nll, truth["nll"], rtol=2e-7, atol=2e-6)
        np.testing.assert_allclose(found.llama_kld, truth["kld"], atol=2e-6)
        ours, theirs = found.llama_kld[alike], truth["kld"][alike]
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-10)
        assert ours.mean() == pytest.approx(theirs.mean(), rel=2e-9)
        assert found.llama_nll_base.tobytes() == truth["nll_base"].tobytes()
        np.testing.assert_array_equal(found.top == found.llama_top_base, truth["same_top"])


@pytest.mark.parametrize("vocabulary", [3001, 20_000])
def test_candidates_that_disagree_at_the_top_follow_the_tool_too(vocabulary: int) -> None:
    base = base_logits(30, vocabulary)
    candidate = candidate_logits(base, 3.0)
    candidate[np.arange(30), np.arange(30)] += np.linspace(0, 60, 30, dtype=np.float32)
    tokens = next_tokens(base)
    truth = llama_token_statistics(encode_kld_rows(base), candidate, tokens, vocabulary)
    for found in both_ways(base, candidate, tokens):
        assert (found.top != found.llama_top_base).mean() > 0.5
        np.testing.assert_allclose(found.llama_kld, truth["kld"], rtol=2e-7, atol=2e-6)
        np.testing.assert_allclose(found.llama_nll, truth["nll"], rtol=2e-7, atol=1e-6)


def test_a_flat_row_of_a_large_vocabulary_counts_its_entries_of_code_0() -> None:
    # All within 16 nats: code 0 lies above the tool's cut, and its terms count.
    base = base_logits(6, 20_000) / 10
    candidate = candidate_logits(base, 0.05)
    tokens = next_tokens(base)
    words = encode_kld_rows(base)
    assert (decode_kld_rows(words, 20_000).min(axis=1) > -16).all()
    truth = llama_token_statistics(words, candidate, tokens, 20_000)
    for found in both_ways(base, candidate, tokens):
        np.testing.assert_allclose(found.llama_kld, truth["kld"], rtol=1e-8)
        assert found.llama_nll.tobytes() == truth["nll"].tobytes()


def test_where_steps_are_tiny_the_tools_top_is_the_first_that_rounds_to_the_largest() -> None:
    rng = np.random.default_rng(0)
    base = (1 + 1e-3 * rng.random((50, 900))).astype(np.float32)
    tokens = next_tokens(base)
    words = encode_kld_rows(base)
    tool = decode_kld_rows(words, 900).argmax(axis=1)
    assert (tool != words[:, 4:].argmax(axis=1)).any()
    for found in both_ways(base, base, tokens):
        np.testing.assert_array_equal(found.llama_top_base, tool)
    out, tops = np.empty((50, 8)), np.empty((50, 3), np.int32)
    row_numpy.statistics_of_rows(LogitRows(base), base, tokens, 0, 50, out, tops, llama=True)
    np.testing.assert_array_equal(tops[:, 2], tool)


def test_numpy_follows_the_tool_bit_for_bit() -> None:
    base = base_logits(20, 3001)
    base[2] = 7
    candidate = candidate_logits(base, 0.3)
    tokens = next_tokens(base)
    truth = llama_token_statistics(encode_kld_rows(base), candidate, tokens, 3001)
    out, tops = np.empty((20, 8)), np.empty((20, 3), np.int32)
    row_numpy.statistics_of_rows(LogitRows(base), candidate, tokens, 0, 20, out, tops, llama=True)
    np.testing.assert_allclose(out[:, 5], truth["kld"], rtol=1e-11, atol=1e-14)
    np.testing.assert_array_equal(out[:, 6], truth["nll"])
    np.testing.assert_array_equal(out[:, 7], truth["nll_base"])
