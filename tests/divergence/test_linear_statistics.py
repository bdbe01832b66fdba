"""Statistics from hidden states and heads: against dense float64, and the numba kernel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from linear_sides import F4, dense_logits, of_logits, quantised, random_side, random_tokens
from realistic_rows import base_logits, candidate_logits, next_tokens

from kldcloud.divergence.base_rows import LogitRows
from kldcloud.divergence.kernel import TokenStatistics, join_statistics, token_statistics
from kldcloud.divergence.linear import passes
from kldcloud.divergence.linear.side import LinearSide, exact_products
from kldcloud.divergence.linear.statistics import linear_statistics
from kldcloud.errors import EngineError, FormatError
from tests.reference import float64_token_statistics

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EXACT = ("kld", "reverse_kld", "nll", "nll_base", "entropy_base")
SMALL_TILES = 100_000
"""Bytes that make many tiles, and a last one that is not whole."""


def assert_equals_dense(
    found: TokenStatistics,
    base: npt.NDArray[np.floating],
    candidate: npt.NDArray[np.floating],
    tokens: npt.NDArray[np.int32],
    *,
    absolute: float = 1e-8,
    relative: float = 3e-5,
) -> None:
    truth = float64_token_statistics(base, candidate, tokens)
    np.testing.assert_allclose(found.kld, truth["kld"], relative, absolute)
    np.testing.assert_allclose(found.reverse_kld, truth["reverse_kld"], relative, absolute)
    for name in ("nll", "nll_base", "entropy_base"):
        np.testing.assert_allclose(getattr(found, name), truth[name], 2e-7, 2e-5)
    np.testing.assert_array_equal(found.top, truth["top"])
    np.testing.assert_array_equal(found.top_base, truth["top_base"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "vocabulary", "width"),
    [(17, 32_000, 63), (1, 32_001, 63), (3, 32_001, 64), (3, 151_936, 65), (2, 262_144, 31)],
)
@pytest.mark.parametrize("noise", [0.01, 0.2])
def test_each_token_agrees_with_dense_float64(
    rows: int, vocabulary: int, width: int, dtype: torch.dtype, noise: float
) -> None:
    base = random_side(rows, vocabulary, width, dtype=dtype)
    candidate = quantised(base, noise)
    tokens = random_tokens(rows, vocabulary)
    found = linear_statistics(base, candidate, tokens, llama_compat=False)
    # The products round logits in float32, and the reference does not.
    assert_equals_dense(found, dense_logits(base), dense_logits(candidate), tokens, absolute=2e-7)
    assert 1e-4 < found.kld.mean() < 2


def test_the_sides_may_differ_in_width_dtype_bias_cap_and_scale() -> None:
    base = random_side(9, 5001, 63, dtype=torch.bfloat16)
    base = replace(base, bias=torch.randn(5001, generator=torch.Generator().manual_seed(4)))
    candidate = replace(random_side(9, 5001, 80, seed=7), softcap=6.0, scale=0.7)
    tokens = random_tokens(9, 5001)
    found = linear_statistics(base, candidate, tokens, llama_compat=False, tile_bytes=SMALL_TILES)
    assert_equals_dense(found, dense_logits(base), dense_logits(candidate), tokens)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("change", [{"softcap": 5.0}, {"scale": 0.0625}, {"scale": 1 / 13}])
def test_what_comes_after_the_head_is_done_as_transformers_does_it(
    change: dict[str, float], dtype: torch.dtype
) -> None:
    plain = random_side(4, 700, 32, dtype=dtype)
    side = replace(plain, **change)
    with exact_products():
        logits, found = plain.logits(0, 700), side.logits(100, 300)
    if side.softcap is not None:  # as in Gemma2ForCausalLM
        logits = torch.tanh(logits / side.softcap) * side.softcap
    if side.scale is not None:  # as in CohereForCausalLM; Granite divides
        logits = logits * side.scale
    assert torch.allclose(found, logits[:, 100:300], rtol=1e-6, atol=1e-7)


def test_padding_beyond_the_vocabulary_is_not_seen() -> None:
    base = random_side(5, 1000, 16)
    padded = replace(base, weight=torch.cat([base.weight, torch.full((24, 16), 50.0)]))
    candidate = quantised(base, 0.1)
    biased = replace(
        candidate,
        weight=torch.cat([candidate.weight, torch.full((56, 16), -9.0)]),
        bias=torch.cat([torch.zeros(1000), torch.full((56,), 99.0)]),
    )
    tokens = random_tokens(5, 1000)
    wanted = linear_statistics(base, candidate, tokens, llama_compat=True)
    found = linear_statistics(padded, biased, tokens, llama_compat=True, vocabulary=1000)
    for name in TokenStatistics.__slots__:
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), 1e-6, 1e-8)


@pytest.mark.parametrize("vocabulary", [1, 5, 320, 2049, 16_383, 49_152])
@pytest.mark.parametrize("sigma", [1e-4, 0.2, 3.0])
def test_on_equal_logits_it_says_what_the_kernel_says(vocabulary: int, sigma: float) -> None:
    base = base_logits(12, vocabulary, seed=vocabulary)
    base[3] = 0.5  # equal logits
    candidate = candidate_logits(base, sigma)
    tokens = next_tokens(base)
    found = linear_statistics(
        of_logits(base), of_logits(candidate), tokens, llama_compat=True, tile_bytes=SMALL_TILES
    )
    assert_like_the_kernel(found, base, candidate, tokens)


def assert_like_the_kernel(
    found: TokenStatistics, base: F4, candidate: F4, tokens: npt.NDArray[np.int32]
) -> None:
    wanted = token_statistics(LogitRows(base), candidate, tokens)
    np.testing.assert_allclose(found.kld, wanted.kld, 1e-5, 3e-8)
    np.testing.assert_allclose(found.reverse_kld, wanted.reverse_kld, 1e-5, 3e-8)
    for name in ("nll", "nll_base", "entropy_base", "llama_nll", "llama_nll_base"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), 3e-7, 3e-6)
    # The tool's float32 log-sum-exps may round to a neighbour, which moves every term of its sum.
    step = np.spacing(np.maximum(np.abs(base).max(axis=1), np.abs(candidate).max(axis=1)))
    slack = 3 * (step + np.spacing(np.float32(16))) * (1 + np.abs(wanted.llama_kld))
    assert (np.abs(found.llama_kld - wanted.llama_kld) <= slack).all()
    for name in ("top", "top_base", "llama_top_base"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    for name in TokenStatistics.__slots__:
        assert getattr(found, name).dtype == getattr(wanted, name).dtype


def test_without_llama_its_columns_are_empty_and_the_others_the_same() -> None:
    base = random_side(6, 3000, 24)
    candidate = quantised(base, 0.1)
    tokens = random_tokens(6, 3000)
    both = linear_statistics(base, candidate, tokens, llama_compat=True)
    exact = linear_statistics(base, candidate, tokens, llama_compat=False)
    for name in (*EXACT, "top", "top_base"):
        assert getattr(both, name).tobytes() == getattr(exact, name).tobytes()
    assert np.isfinite(both.llama_kld).all()
    assert np.isnan(exact.llama_kld).all()
    assert np.isnan(exact.llama_nll).all()
    assert np.isnan(exact.llama_nll_base).all()
    assert (exact.llama_top_base == -1).all()


@pytest.mark.parametrize("sigma", [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 6.0])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_divergences_are_exact_to_parts_in_a_hundred_thousand_however_small(
    sigma: float, offset: float
) -> None:
    base = base_logits(20, 8191)
    candidate = candidate_logits(base, sigma) + np.float32(offset)
    tokens = next_tokens(base)
    found = linear_statistics(
        of_logits(base), of_logits(candidate), tokens, llama_compat=False, tile_bytes=SMALL_TILES
    )
    # From 1e-13 nats on the reference, too, cancels.
    assert_equals_dense(found, base, candidate, tokens, absolute=1e-13, relative=1e-5)
    assert found.kld.min() > 0


@pytest.mark.parametrize("seed", range(25))
def test_never_below_zero_and_exactly_zero_on_itself(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, vocabulary = int(rng.integers(1, 9)), int(rng.integers(2, 6000))
    base = base_logits(rows, vocabulary, seed=seed, spread=float(rng.uniform(1, 60)))
    candidate = candidate_logits(base, float(10 ** rng.uniform(-8, 1)), seed=seed)
    tokens = next_tokens(base)
    tile = int(10 ** rng.uniform(4, 7))

    def compared(a: F4, b: F4) -> TokenStatistics:
        return linear_statistics(
            of_logits(a), of_logits(b), tokens, llama_compat=False, tile_bytes=tile
        )

    found = compared(base, candidate)
    assert min(found.kld.min(), found.reverse_kld.min()) >= 0
    backward = compared(candidate, base)
    np.testing.assert_allclose(backward.kld, found.reverse_kld, 1e-5, 1e-13)
    itself = compared(candidate, candidate.copy())
    assert not itself.kld.any()
    assert not itself.reverse_kld.any()


@pytest.mark.parametrize("seed", range(10))
def test_a_constant_added_to_a_row_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    base, noise = rng.normal(0, 4, (2, 5, 4001))
    # Logits, and their sums with whole numbers to 4096, are float32 as they are.
    base = (np.rint(base * 1024) / 1024).astype(np.float32)
    candidate = base + (np.rint(noise * 50) / 1024).astype(np.float32)
    shifts = rng.integers(-4096, 4096, (2, 5, 1)).astype(np.float32)
    tokens = random_tokens(5, 4001, seed=seed)

    def compared(a: F4, b: F4) -> TokenStatistics:
        return linear_statistics(
            of_logits(a), of_logits(b), tokens, llama_compat=False, tile_bytes=SMALL_TILES
        )

    plain, shifted = compared(base, candidate), compared(base + shifts[0], candidate + shifts[1])
    for name in EXACT:
        np.testing.assert_allclose(getattr(shifted, name), getattr(plain, name), 1e-10, 1e-12)
    itself = compared(base, base + shifts[1])
    assert 0 <= itself.kld.max() < 1e-20


def test_logits_of_ten_thousand_nats_are_measured_exactly() -> None:
    rng = np.random.default_rng(8)
    base = rng.uniform(-1e4, 1e4, (12, 3001)).astype(np.float32)
    candidate = rng.uniform(-1e4, 1e4, (12, 3001)).astype(np.float32)
    candidate[:4] = base[:4] * np.float32(1.0001)
    candidate[4] = base[4]
    tokens = random_tokens(12, 3001)
    found = linear_statistics(
        of_logits(base), of_logits(candidate), tokens, llama_compat=True, tile_bytes=SMALL_TILES
    )
    assert_equals_dense(found, base, candidate, tokens, relative=1e-6)
    assert found.kld.max() > 1e4
    assert found.kld[4] == 0
    assert_like_the_kernel(found, base, candidate, tokens)


@pytest.mark.parametrize("factor", [0.0, 1.0, 10.0])
def test_broken_candidates_are_still_measured_exactly(factor: float) -> None:
    base = base_logits(12, 3001, spread=20.0)
    candidate = factor * base
    at = np.random.default_rng(5).integers(0, 3001, 12)
    candidate[np.arange(12), at] += np.geomspace(10, 900, 12).astype(np.float32)
    tokens = next_tokens(base)
    found = linear_statistics(
        of_logits(base), of_logits(candidate), tokens, llama_compat=False, tile_bytes=SMALL_TILES
    )
    assert_equals_dense(found, base, candidate, tokens)
    assert found.kld.max() > 500


def test_of_equal_maxima_the_first_is_the_top_across_tiles_too() -> None:
    base = base_logits(4, 6000)
    candidate = candidate_logits(base, 0.1)
    for row, places in enumerate([(0, 5999), (2047, 2048), (511, 512), (17, 18)]):
        base[row, list(places)] = 50
        candidate[row, [place - row % 2 for place in places]] = 60
    base[3, [17, 18]] = [-0.0, 0.0]
    base[3] = np.minimum(base[3], 0)
    found = linear_statistics(
        of_logits(base), of_logits(candidate), next_tokens(base), llama_compat=True,
        tile_bytes=SMALL_TILES,
    )  # fmt: skip
    assert found.top_base.tolist() == base.argmax(axis=1).tolist()
    assert found.top.tolist() == [0, 2046, 511, 16]
    assert found.llama_top_base.tolist() == base.argmax(axis=1).tolist()


def test_rows_and_tiles_may_be_cut_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    base = random_side(70, 4100, 20)
    candidate = quantised(base, 0.1)
    tokens = random_tokens(70, 4100)
    whole = linear_statistics(base, candidate, tokens, llama_compat=True, tile_bytes=1 << 30)
    monkeypatch.setitem(passes.ROWS, "cpu", 32)
    cut = linear_statistics(base, candidate, tokens, llama_compat=True, tile_bytes=SMALL_TILES)
    for name in TokenStatistics.__slots__:
        np.testing.assert_allclose(getattr(cut, name), getattr(whole, name), 5e-6, 5e-6)
    np.testing.assert_allclose(cut.kld, whole.kld, 3e-6)
    parts = [
        linear_statistics(
            base.select(rows), candidate.select(rows), tokens[rows], llama_compat=False
        )
        for rows in (slice(0, 11), slice(11, 70))
    ]
    np.testing.assert_allclose(join_statistics(parts).kld, whole.kld, 3e-6, 1e-7)


def test_no_rows_give_no_statistics() -> None:
    side = random_side(0, 100, 8)
    found = linear_statistics(side, side, np.empty(0, np.int32), llama_compat=True)
    assert all(getattr(found, name).shape == (0,) for name in TokenStatistics.__slots__)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("broken", ["base", "candidate"])
def test_a_logit_that_is_not_finite_is_refused_with_its_position(broken: str, bad: float) -> None:
    sides = {name: random_side(6, 3000, 8) for name in ("base", "candidate")}
    sides[broken].states[4, 5] = bad
    with pytest.raises(EngineError, match=f"{broken} logits .* position 24 of the chunk .1 of 6"):
        linear_statistics(**sides, tokens=random_tokens(6, 3000), llama_compat=True, first_row=20)


def test_a_single_logit_of_minus_infinity_is_refused() -> None:
    side = random_side(3, 900, 8)
    masked = replace(side, bias=torch.zeros(900).index_fill(0, torch.tensor([899]), -torch.inf))
    with pytest.raises(EngineError, match=r"candidate logits .* position 0 .*3 of 3"):
        linear_statistics(side, masked, random_tokens(3, 900), llama_compat=False)


def refused(base: LinearSide, candidate: LinearSide, **options: object) -> pytest.ExceptionInfo:  # type: ignore[type-arg]
    tokens = np.zeros(3, np.int32)
    with pytest.raises(FormatError) as caught:
        linear_statistics(base, candidate, tokens, llama_compat=False, **options)  # type: ignore[arg-type]
    return caught


def test_sides_that_do_not_fit_are_refused() -> None:
    side = random_side(3, 300, 8)
    assert "300 tokens, candidate 3 over 301" in str(refused(side, random_side(3, 301, 8)).value)
    assert "base has 3 rows" in str(refused(side, random_side(4, 300, 8)).value)
    caught = refused(side, replace(side, states=torch.ones(3, 9)))
    assert "candidate states (3, 9) do not fit its head (300, 8)" in str(caught.value)
    caught = refused(replace(side, bias=torch.ones(301)), side)
    assert "base head has 300 tokens, its bias (301,)" in str(caught.value)
    assert "torch.float64" in str(refused(replace(side, states=side.states.double()), side).value)
    assert "310 are wanted" in str(refused(side, side, vocabulary=310).value)
    assert "two devices" in str(
        refused(replace(side, bias=torch.ones(300, device="meta")), side).value
    )


@pytest.mark.parametrize("token", [-1, 300, 2**31 - 1])
def test_a_next_token_outside_the_vocabulary_is_refused(token: int) -> None:
    side = random_side(3, 300, 8)
    tokens = np.array([0, token, 1], np.int32)
    with pytest.raises(FormatError, match="outside the vocabulary of 300"):
        linear_statistics(side, side, tokens, llama_compat=False)


def test_products_are_exact_within_and_settings_as_before_after() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction
    try:
        matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction = "tf32", True
        with exact_products():
            assert matmul.fp32_precision == "ieee"
            assert not matmul.allow_bf16_reduced_precision_reduction
        assert matmul.fp32_precision == "tf32"
        assert matmul.allow_bf16_reduced_precision_reduction
    finally:
        matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction = before


@pytest.mark.parametrize("older", ["high", "medium"])
def test_both_of_torchs_settings_agree_within(older: str) -> None:
    matmul = torch.backends.cuda.matmul
    try:
        torch.set_float32_matmul_precision(older)
        newer = matmul.fp32_precision
        with exact_products():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not matmul.allow_tf32  # raises where they do not
        assert torch.get_float32_matmul_precision() == older
        assert matmul.fp32_precision == newer
    finally:
        torch.set_float32_matmul_precision("highest")
        matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"
