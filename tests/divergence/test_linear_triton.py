"""The Triton kernels: on a GPU where there is one, else in Triton's interpreter; and compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from linear_sides import of_logits, quantised, random_side, random_tokens
from realistic_rows import base_logits, candidate_logits, next_tokens

from kldcloud.divergence.kernel import TokenStatistics
from kldcloud.divergence.linear.side import LinearSide
from kldcloud.divergence.linear.statistics import linear_statistics
from kldcloud.errors import EngineError
from tests.reference import float64_token_statistics

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALVES = (torch.float16,) if DEVICE == "cpu" else (torch.float16, torch.bfloat16)
"""The interpreter multiplies bfloat16 as if it were integers (3.9)."""
SCRIPT = Path(__file__).parent / "compile_for_h100.py"

if DEVICE == "cpu":
    # Triton reads it when it is imported, which no test module does.
    os.environ["TRITON_INTERPRET"] = "1"

pytestmark = [
    # Of numpy, in branches that are not taken.
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.skipif(
        find_spec("triton") is None, reason="Triton is not installed: it comes for Linux only"
    ),
    pytest.mark.skipif(
        DEVICE == "cpu" and "triton" in sys.modules,
        reason="Triton was imported to compile for GPUs, not to interpret, and there is no GPU",
    ),
]


def there(side: LinearSide) -> LinearSide:
    """A side on the device of these tests."""
    bias = side.bias if side.bias is None else side.bias.to(DEVICE)
    return replace(side, states=side.states.to(DEVICE), weight=side.weight.to(DEVICE), bias=bias)


def measured(
    base: LinearSide,
    candidate: LinearSide,
    tokens: np.ndarray,
    *,
    llama_compat: bool = False,
) -> TokenStatistics:
    return linear_statistics(
        there(base), there(candidate), tokens,
        llama_compat=llama_compat, engine="tiles", tile_bytes=150_000,
    )  # fmt: skip


def assert_alike(found: TokenStatistics, wanted: TokenStatistics) -> None:
    np.testing.assert_allclose(found.kld, wanted.kld, 3e-5, 1e-7)
    np.testing.assert_allclose(found.reverse_kld, wanted.reverse_kld, 3e-5, 1e-7)
    for name in ("nll", "nll_base", "entropy_base", "llama_kld", "llama_nll", "llama_nll_base"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), 1e-6, 2e-5)
    for name in ("top", "top_base", "llama_top_base"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


@pytest.mark.parametrize("vocabulary", [1, 5, 2047, 2048, 2049, 6001])
@pytest.mark.parametrize("sigma", [1e-4, 0.2, 3.0])
def test_tiles_say_what_float64_and_torch_say(vocabulary: int, sigma: float) -> None:
    base = base_logits(6, vocabulary, seed=vocabulary)
    base[3] = 0.5  # equal logits
    candidate = candidate_logits(base, sigma)
    tokens = next_tokens(base)
    sides = of_logits(base), of_logits(candidate)
    found = measured(*sides, tokens, llama_compat=True)
    truth = float64_token_statistics(base, candidate, tokens)
    for name in ("kld", "reverse_kld"):
        np.testing.assert_allclose(getattr(found, name), truth[name], 1e-5, 1e-13)
    for name in ("nll", "nll_base", "entropy_base"):
        np.testing.assert_allclose(getattr(found, name), truth[name], 1e-7, 1e-6)
    assert_alike(found, linear_statistics(*sides, tokens, llama_compat=True))


def test_widths_biases_caps_and_scales_may_differ() -> None:
    random = torch.Generator().manual_seed(4)
    base = random_side(5, 1000, 63, dtype=torch.float16)
    base = replace(base, bias=torch.randn(1000, generator=random))
    candidate = random_side(5, 1000, 80, dtype=torch.float16, seed=7)
    candidate = replace(candidate, softcap=4.0, scale=0.7)
    tokens = random_tokens(5, 1000)
    wanted = linear_statistics(base, candidate, tokens, llama_compat=False)
    assert_alike(measured(base, candidate, tokens), wanted)


def test_never_below_zero_exactly_zero_on_itself_and_first_of_equals() -> None:
    base = random_side(4, 2100, 32, dtype=torch.float16)
    base.weight[[2090, 150]] = base.weight[77].clone()  # equal logits, to the bit
    base = replace(base, bias=torch.zeros(2100).index_fill(0, torch.tensor([77, 150, 2090]), 40.0))
    tokens = random_tokens(4, 2100)
    itself = measured(base, replace(base, states=base.states.clone()), tokens)
    assert not itself.kld.any()
    assert not itself.reverse_kld.any()
    assert itself.top.tolist() == itself.top_base.tolist() == [77] * 4
    for noise in (1e-3, 1e-2):
        found = measured(base, quantised(base, noise), tokens)
        assert min(found.kld.min(), found.reverse_kld.min()) >= 0


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_refused(bad: float) -> None:
    side = random_side(3, 300, 16, dtype=torch.float16)
    broken = replace(side, bias=torch.zeros(300).index_fill(0, torch.tensor([299]), bad))
    tokens = random_tokens(3, 300)
    with pytest.raises(EngineError, match=r"candidate logits .* position 0 .*3 of 3"):
        measured(side, broken, tokens)
    broken = replace(side, states=side.states.clone())
    broken.states[1, 2] = bad
    with pytest.raises(EngineError, match=r"base logits .* position 1 .*1 of 3"):
        measured(broken, side, tokens)


def test_the_kernels_compile_for_an_h100_without_one(tmp_path: Path) -> None:
    environment = {name: os.environ[name] for name in os.environ if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, SCRIPT], env=environment, check=True, stdout=subprocess.PIPE
    )
    found = json.loads(done.stdout)
    assert {name for name, kernel in found.items() if kernel["cubin"]} == set(found)
    assert set(found) == {"_tile_kernel", "_merge_kernel", "_llama_kernel"}
    # All the shared memory that a processor has.
    assert max(kernel["shared"] for kernel in found.values()) <= 227 * 1024
    # The tool multiplies, rounds and adds: nothing but exp64's own polynomial may be fused.
    assert found["_llama_kernel"]["fused32"] == 0
    assert found["_tile_kernel"]["fused32"] > 0
