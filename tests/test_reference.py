"""The reference formulas: held against hand-worked numbers, each other and the real tool."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kldcloud.models.amx import extra_buffers_work
from kldcloud.staging.kld_file import read_kld_chunk, read_kld_header, read_kld_tokens
from tests.peer import find_peer, run_peer_base, run_peer_kld
from tests.reference import (
    decode_kld_rows,
    encode_kld_rows,
    float64_token_statistics,
    llama_token_statistics,
)
from tests.tiny_models import BOS_ID, TinyPair, tiny_pair

PEER = find_peer()
needs_peer = pytest.mark.skipif(PEER is None, reason="llama-perplexity is not built: make peer")

N_CTX = 128
CHUNKS = 4


def scored_logits(
    model: Path, chunks: npt.NDArray[np.int32], *, bos: bool
) -> npt.NDArray[np.float32]:
    """The engine's logits of each chunk's scored positions: float32 ``[chunks, rows, V]``."""
    engine = pytest.importorskip("llama_cpp")
    n_ctx = chunks.shape[1]
    with pytest.MonkeyPatch.context() as patch:
        params = engine.llama_model_default_params()
        params.use_extra_bufts = extra_buffers_work()
        # The binding's own class has no such option.
        patch.setattr(engine.llama_cpp, "llama_model_default_params", lambda: params)
        llama = engine.Llama(
            str(model),
            n_ctx=n_ctx,
            n_batch=n_ctx,
            n_threads=1,
            logits_all=True,
            flash_attn=True,
            verbose=False,
        )
    found = []
    for chunk in chunks:
        tokens = [BOS_ID, *chunk[1:]] if bos else list(chunk)
        llama.reset()
        llama.eval(tokens)
        found.append(np.array(llama.scores[n_ctx // 2 : n_ctx - 1], dtype=np.float32))
    llama.close()
    return np.stack(found)


@pytest.fixture(scope="module")
def logits() -> npt.NDArray[np.float32]:
    """Rows with a spread on both sides of the 16-nat clamp, one with none at all."""
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((40, 321)).astype(np.float32)
    rows *= np.linspace(0, 6, 40, dtype=np.float32)[:, None]
    return rows


def test_two_tokens_worked_by_hand() -> None:
    base = np.log(np.array([[0.75, 0.25]], dtype=np.float32))
    candidate = np.log(np.array([[0.5, 0.5]], dtype=np.float32)) + np.float32(3)
    found = float64_token_statistics(base, candidate, np.array([1]))
    assert found["kld"][0] == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), abs=1e-7)
    assert found["reverse_kld"][0] == pytest.approx(0.5 * np.log(4 / 3), abs=1e-7)
    assert found["nll"][0] == pytest.approx(np.log(2), abs=1e-7)
    assert found["nll_base"][0] == pytest.approx(np.log(4), abs=1e-7)
    entropy = 0.75 * np.log(4 / 3) + 0.25 * np.log(4)
    assert found["entropy_base"][0] == pytest.approx(entropy, abs=1e-7)
    assert (found["top"][0], found["top_base"][0]) == (0, 0)


def test_codes_are_within_half_a_step_down_to_the_clamp(
    logits: npt.NDArray[np.float32],
) -> None:
    rows = encode_kld_rows(logits)
    decoded = decode_kld_rows(rows, 321).astype(np.float64)
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    floor = exact.max(axis=1, keepdims=True) - 16
    spread = np.minimum(exact.max(axis=1) - exact.min(axis=1), 16)
    step = spread[:, None] / 65535
    assert (np.abs(decoded - np.maximum(exact, floor)) <= 0.5 * step + 4e-6).all()
    assert (decoded.min(axis=1) > exact.min(axis=1) + 1).any()
    assert not rows[:, -1].any()


def test_equal_logits_encode_as_zeros(logits: npt.NDArray[np.float32]) -> None:
    row = encode_kld_rows(logits[:1])[0]
    assert not logits[0].any()
    assert not row[:2].any()
    assert not row[4:].any()
    assert row[2:4].view(np.float32)[0] == np.float32(-np.log(321))


def test_the_tools_statistics_tend_to_the_exact_ones_without_a_clamp(
    logits: npt.NDArray[np.float32],
) -> None:
    base = logits[1:12]
    rng = np.random.default_rng(4)
    candidate = base + np.float32(0.25) * rng.standard_normal(base.shape).astype(np.float32)
    tokens = rng.integers(0, 321, len(base))
    exact = float64_token_statistics(base, candidate, tokens)
    tools = llama_token_statistics(encode_kld_rows(base), candidate, tokens, 321)
    np.testing.assert_allclose(tools["kld"], exact["kld"], atol=1e-5)
    np.testing.assert_allclose(tools["nll"], exact["nll"], atol=1e-5)
    np.testing.assert_allclose(tools["nll_base"], exact["nll_base"], atol=1e-4)
    difference = np.exp(-exact["nll"]) - np.exp(-exact["nll_base"])
    np.testing.assert_allclose(tools["p_diff"], difference, atol=1e-5)
    np.testing.assert_array_equal(tools["same_top"], exact["top"] == exact["top_base"])


@pytest.fixture(scope="module", params=[(320, True), (321, True), (321, False)], ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    vocabulary, bos = request.param
    return tiny_pair(tmp_path_factory.mktemp("pair"), vocabulary=vocabulary, bos=bos)


@pytest.fixture(scope="module")
def base_file(pair: TinyPair) -> Path:
    assert PEER is not None
    path = pair.base.with_name("base.kld")
    run_peer_base(PEER, pair.base, path, n_ctx=N_CTX, chunks=CHUNKS)
    return path


@needs_peer
def test_encoded_rows_are_the_tools_rows(pair: TinyPair, base_file: Path) -> None:
    header = read_kld_header(base_file)
    assert (header.n_ctx, header.n_vocab, header.n_chunks) == (N_CTX, pair.vocabulary, CHUNKS)
    tokens = read_kld_tokens(base_file, header)
    logits = scored_logits(pair.base, tokens, bos=pair.bos)
    assert 16 < np.ptp(logits, axis=2).mean() < 30
    for chunk in range(CHUNKS):
        theirs = read_kld_chunk(base_file, header, chunk)
        np.testing.assert_array_equal(encode_kld_rows(logits[chunk]), theirs)


@needs_peer
def test_statistics_are_the_tools(pair: TinyPair, base_file: Path) -> None:
    assert PEER is not None
    header = read_kld_header(base_file)
    tokens = read_kld_tokens(base_file, header)
    logits = scored_logits(pair.candidate, tokens, bos=pair.bos)
    parts = [
        llama_token_statistics(
            read_kld_chunk(base_file, header, chunk),
            logits[chunk],
            tokens[chunk, header.first + 1 :],
            header.n_vocab,
        )
        for chunk in range(CHUNKS)
    ]
    ours = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    printed = run_peer_kld(PEER, pair.candidate, base_file, n_ctx=N_CTX)

    def line(label: str) -> str:
        found = re.search(rf"^{re.escape(label)} *:(.*)$", printed, re.MULTILINE)
        assert found
        return found[1].split("±")[0].strip(" %")

    assert line("Mean    KLD") == f"{ours['kld'].mean():.6f}"
    assert line("Maximum KLD") == f"{ours['kld'].max():.6f}"
    assert line("Minimum KLD") == f"{ours['kld'].min():.6f}"
    assert line("Mean PPL(Q)") == f"{np.exp(ours['nll'].astype(np.float64).mean()):.6f}"
    assert line("Mean PPL(base)") == f"{np.exp(ours['nll_base'].astype(np.float64).mean()):.6f}"
    assert line("Mean    Δp") == f"{100 * ours['p_diff'].astype(np.float64).mean():.3f}"
    assert line("Maximum Δp") == f"{100 * ours['p_diff'].max():.3f}"
    assert line("Same top p") == f"{100 * ours['same_top'].mean():.3f}"
