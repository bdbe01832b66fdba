"""The loops written for AVX-512 against the plain ones that say the same."""

from __future__ import annotations

import numpy as np
import pytest
from realistic_rows import base_logits, candidate_logits, next_tokens

from kldcloud.divergence import llama_packed_numba, strips_numba
from kldcloud.divergence.kept_numba import SLACK
from kldcloud.divergence.kernel import encode
from kldcloud.divergence.vector_math import wide_vectors

pytestmark = pytest.mark.skipif(not wide_vectors(), reason="the machine has no AVX-512")

LENGTHS = [1, 15, 16, 17, 32, 33, 500, 2048, 20_001]
LOG2E = np.float32(np.log2(np.e))


def row_of(n: int) -> tuple[np.ndarray, np.ndarray, np.float32, np.float32]:
    """Candidate logits, codes, and the base row's scale and low."""
    base = base_logits(1, max(n, 2), seed=n)[:, :n]
    codes = encode(base, next_tokens(base))
    scale, low = codes.words[0, :4].view(np.float32)
    return candidate_logits(base, 0.3)[0], codes.words[0, 4 : 4 + n], scale, low


@pytest.mark.parametrize("n", LENGTHS)
def test_both_pack_the_same_entries_and_agree_on_the_rest(n: int) -> None:
    x, c, _, _ = row_of(n)
    c = np.where(np.arange(n) % 3 == 0, 0, c).astype(np.uint16)
    c0 = x.max() * LOG2E
    found = []
    for strip in (strips_numba.pack_strip_plain, strips_numba.pack_strip_wide):
        packed = np.zeros((2, n + SLACK), np.float32)
        kept, rest = strip(x, c, c0, packed[0], packed[1], 0)
        found.append((packed[:, :kept].tobytes(), rest))
    assert found[0][0] == found[1][0] == np.stack([x[c > 0], c[c > 0]]).astype("f4").tobytes()
    assert found[1][1] == pytest.approx(found[0][1], rel=2e-6)
    truth = np.exp2(x[c == 0] * np.float64(LOG2E) - np.float64(c0)).sum()
    assert found[1][1] == pytest.approx(truth, rel=2e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 31, 63, 64, 69])
def test_a_tail_that_is_not_finite_shows_in_its_sum(bad: float, place: int) -> None:
    x = np.linspace(-9, 0, 70, dtype=np.float32)
    x[place] = bad
    packed = np.zeros((2, 70 + SLACK), np.float32)
    for strip in (strips_numba.pack_strip_plain, strips_numba.pack_strip_wide):
        _, rest = strip(x, np.zeros(70, np.uint16), np.float32(0), packed[0], packed[1], 0)
        assert not np.isfinite(rest)


@pytest.mark.parametrize("n", [n for n in LENGTHS if n <= strips_numba.STRIP])
def test_both_sum_kept_entries_alike_whatever_lies_behind_them(n: int) -> None:
    x, c, scale, _ = row_of(n)
    packed = np.full((2, 3 + n + SLACK), np.nan, np.float32)
    packed[0, 3 : 3 + n] = x
    packed[1, 3 : 3 + n] = c
    top = int(c.argmax())
    anchors = x[top] * LOG2E, np.float32(c[top]), scale * LOG2E
    plain = strips_numba.kept_strip_plain(packed[0], packed[1], 3, 3 + n, *anchors)
    wide = strips_numba.kept_strip_wide(packed[0], packed[1], 3, 3 + n, *anchors)
    np.testing.assert_allclose(wide[:5], plain[:5], rtol=3e-6, atol=1e-7)
    assert wide[5:] == plain[5:]


@pytest.mark.parametrize("n", LENGTHS)
def test_both_make_the_tools_sums_alike(n: int) -> None:
    x, c, scale, low = row_of(n)
    packed = np.full((4, n + SLACK), np.nan, np.float32)
    packed[0, :n] = x
    packed[1, :n] = c
    sums = [
        sum_(packed[0, :n], x.max(), packed[2])
        for sum_ in (
            llama_packed_numba.packed_expf_sum_plain,
            llama_packed_numba.packed_expf_sum_wide,
        )
    ]
    assert sums[1] == pytest.approx(sums[0], rel=2e-8)
    lse = np.float32(x.max() + np.log(sums[0]))
    terms = [
        sum_(packed, n, scale, low, lse)
        for sum_ in (llama_packed_numba.packed_terms_plain, llama_packed_numba.packed_terms_wide)
    ]
    assert terms[1] == pytest.approx(terms[0], rel=1e-7, abs=1e-8)
