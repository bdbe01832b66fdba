"""The kernel from 16-nat codes: what they keep, what they lose, and the codes themselves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from realistic_rows import base_logits, candidate_logits, next_tokens

from kldcloud.divergence import row_numpy
from kldcloud.divergence.base_rows import CodeRows, LogitRows, words_per_row
from kldcloud.divergence.kept_numba import SLACK, pack, pack_plain
from kldcloud.divergence.kernel import TokenStatistics, as_codes, encode, token_statistics
from kldcloud.errors import EngineError, FormatError
from tests.reference import encode_kld_rows, float64_token_statistics

VOCABULARIES = (5, 6, 15, 320, 321, 1023, 1024, 1025, 2049, 20_000, 151_936)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_codes_are_those_of_llama_bit_for_bit(vocabulary: int) -> None:
    rows = 8 if vocabulary > 100_000 else 40
    base = base_logits(rows, vocabulary, seed=vocabulary)
    base[1] = 3.25  # equal logits: scale 0
    base[2] /= 10  # less than 16 nats in all
    codes = encode(base, next_tokens(base))
    words = encode_kld_rows(base)
    assert codes.words.shape == (rows, words_per_row(vocabulary))
    np.testing.assert_array_equal(codes.words, words)
    if vocabulary % 2:
        assert not codes.words[:, -1].any()


def test_extras_hold_what_the_codes_lose() -> None:
    base = base_logits(30, 20_001)
    tokens = next_tokens(base)
    codes = encode(base, tokens)
    truth = float64_token_statistics(base, base, tokens)
    exact = base.astype(np.float64) - base.max(axis=1, keepdims=True)
    p = np.exp(exact)
    zero = codes.words[:, 4:20_005] == 0
    extras = codes.extras
    assert extras is not None
    np.testing.assert_allclose(extras.normaliser, np.log(p.sum(axis=1)), rtol=1e-11)
    np.testing.assert_allclose(
        extras.tail, np.where(zero, p, 0).sum(axis=1) / p.sum(axis=1), rtol=1e-9
    )
    np.testing.assert_allclose(extras.target, -truth["nll_base"], rtol=1e-11)
    np.testing.assert_allclose(extras.entropy, truth["entropy_base"], rtol=1e-10)
    np.testing.assert_array_equal(extras.top, truth["top_base"])


def test_numpy_encodes_the_same_bits() -> None:
    base = base_logits(9, 3001)
    base[4] = 0
    tokens = next_tokens(base)
    codes = encode(base, tokens)
    words = np.empty_like(codes.words)
    found, top = np.empty((9, 4)), np.empty(9, np.int32)
    row_numpy.encode_rows(base, tokens, 0, 9, words, found, top)
    np.testing.assert_array_equal(words, codes.words)
    extras = codes.extras
    assert extras is not None
    columns = (extras.normaliser, extras.tail, extras.target, extras.entropy)
    np.testing.assert_allclose(found, np.stack(columns, axis=1), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(top, extras.top)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_with_extras_each_token_is_close_to_float64(vocabulary: int) -> None:
    rows = 12 if vocabulary > 10_000 else 60
    base = base_logits(rows, vocabulary, seed=vocabulary)
    candidate = candidate_logits(base, 0.2)
    tokens = next_tokens(base)
    found = token_statistics(encode(base, tokens), candidate, tokens)
    truth = float64_token_statistics(base, candidate, tokens)
    # A step of the codes is 2.4e-4 nats; the divergence within the tail is left out.
    np.testing.assert_allclose(found.kld, truth["kld"], rtol=2e-2, atol=1e-7)
    assert found.kld.mean() == pytest.approx(truth["kld"].mean(), rel=5e-3, abs=1e-8)
    assert found.reverse_kld.mean() == pytest.approx(truth["reverse_kld"].mean(), rel=5e-3)
    np.testing.assert_allclose(found.nll, truth["nll"], rtol=1e-7, atol=1.5e-6)
    np.testing.assert_allclose(found.nll_base, truth["nll_base"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.entropy_base, truth["entropy_base"], rtol=1e-9)
    np.testing.assert_array_equal(found.top, truth["top"])
    np.testing.assert_array_equal(found.top_base, truth["top_base"])


def test_with_extras_a_mean_of_6e_5_nats_is_right_within_half_a_percent() -> None:
    base = base_logits(100, 49_152)
    tokens = next_tokens(base)
    candidate = candidate_logits(base, 0.0125)
    truth = float64_token_statistics(base, candidate, tokens)["kld"].mean()
    assert 4e-5 < truth < 9e-5
    found = token_statistics(encode(base, tokens), candidate, tokens)
    assert found.kld.mean() == pytest.approx(truth, rel=5e-3)
    assert found.kld.min() > -1e-8


@pytest.mark.parametrize("extras", [True, False])
@pytest.mark.parametrize("vocabulary", [320, 49_152, 151_936])
def test_a_model_against_itself_diverges_by_nothing(vocabulary: int, extras: bool) -> None:
    base = base_logits(16, vocabulary)
    tokens = next_tokens(base)
    codes = encode(base, tokens)
    codes = codes if extras else dataclasses.replace(codes, extras=None)
    found = token_statistics(codes, base, tokens)
    assert abs(found.kld.mean()) <= 1e-6
    assert abs(found.reverse_kld.mean()) <= 1e-6


def test_a_llama_file_alone_gives_the_divergence_of_what_it_keeps() -> None:
    base = base_logits(40, 30_000)
    candidate = candidate_logits(base, 0.1)
    tokens = next_tokens(base)
    bare = CodeRows(encode_kld_rows(base), 30_000)
    found = token_statistics(bare, candidate, tokens)
    truth = float64_token_statistics(base, candidate, tokens)
    assert (found.kld >= 0).all()
    assert found.kld.mean() == pytest.approx(truth["kld"].mean(), rel=2e-2)
    codes = encode_kld_rows(base)[np.arange(40), 4 + tokens] > 0
    np.testing.assert_allclose(found.nll_base[codes], truth["nll_base"][codes], atol=2e-4)


@pytest.mark.parametrize("shift", [8.0, 20.0, 60.0, 1e4])
def test_of_a_llama_file_mass_that_a_candidate_moves_to_the_tail_is_counted(shift: float) -> None:
    base = base_logits(12, 3001, seed=3)
    tokens = next_tokens(base)
    bare = CodeRows(encode_kld_rows(base), 3001)
    candidate = np.where(bare.words[:, 4 : 4 + 3001] == 0, base + np.float32(shift), base)
    found = token_statistics(bare, candidate, tokens)
    out, tops = np.empty((12, 8)), np.empty((12, 3), np.int32)
    row_numpy.statistics_of_rows(bare, candidate, tokens, 0, 12, out, tops, llama=False)
    truth = tail_as_one(base, candidate)
    for kld, reverse in ((found.kld, found.reverse_kld), (out[:, 0], out[:, 1])):
        # The file has no more than a bound of the base's own mass there.
        assert (kld <= truth["kld"] + 1e-6).all()
        np.testing.assert_allclose(kld, truth["kld"], rtol=5e-2, atol=5e-3)
        assert (reverse <= truth["reverse_kld"] * (1 + 1e-4) + 1e-6).all()
    np.testing.assert_allclose(found.kld, out[:, 0], rtol=1e-5, atol=2e-8)
    np.testing.assert_allclose(found.reverse_kld, out[:, 1], rtol=1e-5, atol=2e-8)


def test_numba_and_numpy_say_the_same_of_codes() -> None:
    base = base_logits(24, 3001)
    base[5] = -1  # equal logits
    base[6] /= 12  # all within 16 nats
    candidate = candidate_logits(base, 0.3)
    candidate[7, 9] += 200  # broken
    candidate[8] *= 10
    tokens = next_tokens(base)
    with_extras = encode(base, tokens)
    for codes in (with_extras, dataclasses.replace(with_extras, extras=None)):
        fast = token_statistics(codes, candidate, tokens)
        out, tops = np.empty((24, 8)), np.empty((24, 3), np.int32)
        row_numpy.statistics_of_rows(codes, candidate, tokens, 0, 24, out, tops, llama=True)
        np.testing.assert_allclose(fast.kld, out[:, 0], rtol=1e-5, atol=2e-8)
        np.testing.assert_allclose(fast.reverse_kld, out[:, 1], rtol=1e-5, atol=2e-8)
        np.testing.assert_allclose(fast.nll, out[:, 2], rtol=1e-7, atol=1.5e-6)
        np.testing.assert_allclose(fast.nll_base, out[:, 3], rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(fast.llama_kld, out[:, 5], rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(fast.top, tops[:, 0])
        np.testing.assert_array_equal(fast.llama_top_base, tops[:, 2])


def tail_as_one(base: np.ndarray, candidate: np.ndarray) -> dict[str, np.ndarray]:
    """Divergences in float64 with all entries of code 0 taken as one, by logarithms alone."""
    codes = encode_kld_rows(base)[:, 4 : 4 + base.shape[1]]
    kept: dict[str, np.ndarray] = {}
    sides = [each.astype(np.float64) for each in (base, candidate)]
    sides = [each - np.logaddexp.reduce(each, axis=1, keepdims=True) for each in sides]
    tails = [np.logaddexp.reduce(np.where(codes, -np.inf, each), axis=1) for each in sides]
    for name, (p, q), (tail_p, tail_q) in (
        ("kld", sides, tails),
        ("reverse_kld", sides[::-1], tails[::-1]),
    ):
        kept[name] = np.where(codes, np.exp(p) * (p - q), 0).sum(axis=1)
        kept[name] += np.exp(tail_p) * (tail_p - tail_q)
    return kept


@pytest.mark.parametrize("numba", [True, False])
@pytest.mark.parametrize("shift", [-1000.0, -120.0, 5.0, 36.0, 60.0, 120.0, 1e4])
def test_a_candidate_that_moves_the_tail_is_measured_however_far(shift: float, numba: bool) -> None:
    base = base_logits(12, 3001, seed=3)
    tokens = next_tokens(base)
    codes = encode(base, tokens)
    tail = codes.words[:, 4 : 4 + 3001] == 0
    candidate = np.where(tail, base + np.float32(shift), base)
    truth = tail_as_one(base, candidate)
    if numba:
        found = token_statistics(codes, candidate, tokens)
        kld, reverse, nll = found.kld, found.reverse_kld, found.nll
    else:
        out, tops = np.empty((12, 8)), np.empty((12, 3), np.int32)
        row_numpy.statistics_of_rows(codes, candidate, tokens, 0, 12, out, tops, llama=False)
        kld, reverse, nll = out[:, 0], out[:, 1], out[:, 2]
    np.testing.assert_allclose(kld, truth["kld"], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(reverse, truth["reverse_kld"], rtol=1e-4, atol=1e-7)
    full = float64_token_statistics(base, candidate, tokens)
    np.testing.assert_allclose(nll, full["nll"], rtol=1e-7, atol=1.5e-6)


def test_rows_of_equal_logits_are_uniform() -> None:
    base = np.full((2, 700), 4.5, np.float32)
    candidate = np.linspace(0, 3, 1400, dtype=np.float32).reshape(2, 700)
    tokens = np.array([0, 699], np.int32)
    truth = float64_token_statistics(base, candidate, tokens)
    for codes in (encode(base, tokens), CodeRows(encode_kld_rows(base), 700)):
        found: TokenStatistics = token_statistics(codes, candidate, tokens)
        for name in ("kld", "reverse_kld", "nll", "nll_base", "entropy_base"):
            np.testing.assert_allclose(getattr(found, name), truth[name], rtol=1e-7, atol=1e-9)
        assert found.top_base.tolist() == [0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1024, 2999])
def test_a_logit_that_is_not_finite_is_refused_with_its_position(bad: float, place: int) -> None:
    base = base_logits(6, 3000)
    base[3] = 1  # equal logits go another way
    tokens = next_tokens(base)
    codes = encode(base, tokens)
    for row in (3, 4):
        broken = base.copy()
        broken[row, place] = bad
        with pytest.raises(EngineError, match=f"position {row} of the chunk"):
            token_statistics(codes, broken, tokens)
        with pytest.raises(EngineError, match=f"base logits .* position {row} of the chunk"):
            encode(broken, tokens)


def test_shapes_that_differ_are_refused() -> None:
    base = base_logits(3, 300)
    tokens = next_tokens(base)
    with pytest.raises(FormatError, match="base has 3 rows over 300 tokens, candidate 3 over 301"):
        token_statistics(encode(base, tokens), base_logits(3, 301), tokens)


def test_threads_do_not_change_a_bit() -> None:
    base = base_logits(37, 5001)
    candidate = candidate_logits(base, 0.3)
    tokens = next_tokens(base)
    codes = encode(base, tokens)
    whole = token_statistics(codes, candidate, tokens)
    for threads in (2, 4):
        again = encode(base, tokens, threads=threads)
        np.testing.assert_array_equal(again.words, codes.words)
        assert again.extras is not None
        assert codes.extras is not None
        assert again.extras.entropy.tobytes() == codes.extras.entropy.tobytes()
        found = token_statistics(codes, candidate, tokens, threads=threads)
        for field in dataclasses.fields(TokenStatistics):
            assert getattr(found, field.name).tobytes() == getattr(whole, field.name).tobytes()


def test_no_rows_give_no_codes_and_no_statistics() -> None:
    nothing, none = np.empty((0, 301), np.float32), np.empty(0, np.int32)
    codes = encode(nothing, none, threads=2)
    assert codes.words.shape == (0, 306)
    assert token_statistics(codes, nothing, none).kld.shape == (0,)


def test_any_base_rows_become_codes_once() -> None:
    base = base_logits(3, 300)
    tokens = next_tokens(base)
    codes = as_codes(LogitRows(base), tokens)
    np.testing.assert_array_equal(codes.words, encode_kld_rows(base))
    assert as_codes(codes, tokens) is codes


@pytest.mark.parametrize("vocabulary", [1, 15, 16, 17, 333])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_packing_wide_or_plain_keeps_the_same_entries_in_order(
    vocabulary: int, share: float
) -> None:
    rng = np.random.default_rng(vocabulary)
    x = rng.standard_normal(vocabulary).astype(np.float32)
    c = np.where(rng.random(vocabulary) < share, rng.integers(1, 65536, vocabulary), 0)
    c = c.astype(np.uint16)
    for method in (pack, pack_plain):
        packed_x, packed_c = np.full((2, 2 + vocabulary + SLACK), -1, np.float32)
        kept = method(x, c, packed_x, packed_c, 2)
        assert packed_x[2:kept].tolist() == x[c > 0].tolist()
        assert packed_c[2:kept].tolist() == c[c > 0].tolist()
        assert packed_x[:2].tolist() == [-1, -1]
