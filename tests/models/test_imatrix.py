"""Importance matrices: the sums that llama-imatrix makes, whatever the threads, each made once."""

from __future__ import annotations

import ctypes
import json
import os
import signal
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kldcloud.corpus.chunks import Tokens, cut_chunks
from kldcloud.errors import EngineError, StoreError
from kldcloud.models import ggml_tensor
from kldcloud.models.gguf_header import read_gguf_header
from kldcloud.models.imatrix import collect_imatrix, importance_matrix
from kldcloud.models.imatrix_file import check_fit, imatrix_bytes, read_imatrix
from kldcloud.models.llama_context import BATCH
from kldcloud.models.llama_engine import LlamaOptions
from kldcloud.models.llama_tokenizer import tokenize
from kldcloud.store.digest import sha256_file
from tests.golden.cases import GOLDEN, TEXT
from tests.models.layer_inputs import EXPERTS, USED, layer_inputs, tiny_moe
from tests.models.test_quantize import _children
from tests.pipeline.odd_models import with_bytes
from tests.tiny_models import BOS_ID, LAYERS, TinyPair, tiny_pair

CONTEXT = 128
PLAIN = LlamaOptions()
# Nothing is rounded on the way but float32 itself.
EXACT = LlamaOptions(flash_attention="off", kv_type_k="f32", kv_type_v="f32")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("pair"), vocabulary=320, bos=True)


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe(tmp_path_factory.mktemp("moe") / "moe.gguf")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def chunks_of(path: Path, count: int, context: int = CONTEXT, text: Path = TEXT) -> Tokens:
    return cut_chunks(tokenize(path, text.read_text().removesuffix("\n")).tokens, context, count)


def expected(
    path: Path, chunks: Tokens
) -> dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]]:
    """Sums of squares and rows from the formulas of the architecture, in float64."""
    found = {}
    for chunk in chunks:
        fed = chunk.copy()
        fed[0] = BOS_ID
        for name, parts in layer_inputs(path, fed).items():
            squares = np.concatenate([(each**2).sum(axis=0) for each in parts])
            rows = np.array([len(each) for each in parts])
            before = found.get(name, (np.zeros_like(squares), np.zeros_like(rows)))
            found[name] = (before[0] + squares, before[1] + rows)
    return found


@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize(("options", "tolerance"), [(EXACT, 1e-5), (PLAIN, 2e-3)])
def test_sums_are_the_squares_of_what_enters_each_matrix(
    pair: TinyPair, moe: Path, kind: str, options: LlamaOptions, tolerance: float
) -> None:
    path = moe if kind == "moe" else pair.base
    chunks = chunks_of(path, 3)
    found = collect_imatrix(path, chunks, options)
    assert (found.chunks, found.context) == (3, CONTEXT)
    wanted = expected(path, chunks)
    assert found.entries.keys() == wanted.keys()
    for name, (squares, rows) in wanted.items():
        entry = found.entries[name]
        assert entry.sums.dtype == np.float32
        assert entry.counts.tolist() == rows.tolist(), name
        np.testing.assert_allclose(entry.sums, squares, rtol=tolerance, err_msg=name)
    check_fit(found, read_gguf_header(path), "it")


def test_each_expert_has_its_own_rows_and_one_that_is_never_chosen_has_none(moe: Path) -> None:
    found = collect_imatrix(moe, chunks_of(moe, 2), PLAIN).entries
    for layer in range(LAYERS):
        assert found[f"blk.{layer}.ffn_gate_inp.weight"].counts.tolist() == [2 * CONTEXT]
        entry = found[f"blk.{layer}.ffn_down_exps.weight"]
        assert len(entry.counts) == EXPERTS
        assert entry.counts.sum() == 2 * CONTEXT * USED
        assert entry.counts[-1] == 0
        assert (entry.counts[:-1] > 0).all()
        assert (entry.weights().reshape(EXPERTS, -1)[-1] == 1).all()


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_it_is_what_llama_imatrix_made(pair: TinyPair, moe: Path, kind: str) -> None:
    """Goldens of llama-imatrix, see tests/golden/imatrix/made_from.json.

    The largest difference was 1.8e-6 of a sum: that tool adds in float32.
    """
    golden = read_imatrix(GOLDEN / "imatrix" / f"{kind}.gguf")
    path = moe if kind == "moe" else pair.base
    made_from = json.loads((GOLDEN / "imatrix" / "made_from.json").read_text())
    assert sha256_file(path) == made_from["models"][kind]["sha256"]
    found = collect_imatrix(path, chunks_of(path, golden.chunks, golden.context), PLAIN)
    assert (found.chunks, found.context) == (golden.chunks, golden.context) == (4, CONTEXT)
    assert sorted(found.entries) == list(golden.entries)
    for name, entry in golden.entries.items():
        assert found.entries[name].counts.tolist() == entry.counts.tolist()
        np.testing.assert_allclose(found.entries[name].sums, entry.sums, rtol=1e-4)


def test_threads_change_no_byte_and_neither_does_a_second_time(pair: TinyPair) -> None:
    chunks = chunks_of(pair.base, 3)
    made = {
        imatrix_bytes(collect_imatrix(pair.base, chunks, LlamaOptions(threads=threads)), "text")
        for threads in (1, 1, 2, 3)
    }
    assert len(made) == 1


def test_chunks_are_evaluated_alone(pair: TinyPair) -> None:
    chunks = chunks_of(pair.base, 3)
    whole = collect_imatrix(pair.base, chunks, PLAIN).entries
    parts = [collect_imatrix(pair.base, chunks[at : at + 1], PLAIN).entries for at in range(3)]
    for name, entry in whole.items():
        total = sum(part[name].sums.astype(np.float64) for part in parts)
        np.testing.assert_allclose(entry.sums, total, rtol=1e-6)
        assert entry.counts == sum(part[name].counts for part in parts)


def test_a_chunk_of_several_batches_counts_every_row(pair: TinyPair) -> None:
    context = BATCH + 300
    chunks = chunks_of(pair.base, 1, context)
    found = collect_imatrix(pair.base, chunks, EXACT).entries
    wanted = expected(pair.base, chunks)
    for name, (squares, _rows) in wanted.items():
        assert found[name].counts.tolist() == [context]
        np.testing.assert_allclose(found[name].sums, squares, rtol=1e-5)


def test_chunks_that_llama_imatrix_would_pass_over_are_refused(pair: TinyPair) -> None:
    with pytest.raises(EngineError, match="give chunks of 16 tokens or more"):
        collect_imatrix(pair.base, chunks_of(pair.base, 2, 15), PLAIN)


def test_sums_that_are_not_finite_are_refused_by_name(pair: TinyPair, tmp_path: Path) -> None:
    def damage(part: bytearray) -> None:
        part[:4] = np.array([np.nan], "<f4").tobytes()

    damaged = with_bytes(pair.base, tmp_path / "nan.gguf", "blk.1.attn_norm.weight", damage)
    with pytest.raises(EngineError, match=r"the inputs of blk\.1\.\w+\.weight are not finite"):
        collect_imatrix(damaged, chunks_of(pair.base, 1), PLAIN)


def test_it_is_computed_once_and_tells_how_far_it_is(pair: TinyPair, cache: Path) -> None:
    chunks, digest = chunks_of(pair.base, 3), sha256_file(pair.base)
    seen: list[tuple[int, int]] = []

    def make(options: LlamaOptions = PLAIN, count: int = 3, dataset: str = "text") -> Path:
        return importance_matrix(
            pair.base,
            digest,
            chunks[:count],
            options,
            dataset=dataset,
            progress=lambda *done: seen.append(done),
        )

    first = make()
    assert first.is_relative_to(cache)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert first.read_bytes() == imatrix_bytes(collect_imatrix(pair.base, chunks, PLAIN), "text")
    state = first.stat()
    assert make(LlamaOptions(threads=2)) == first
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (state.st_ino, state.st_mtime_ns)
    assert len({first, make(count=2), make(EXACT), make(dataset="other")}) == 4


def test_a_failure_is_one_line_and_leaves_nothing(
    pair: TinyPair, cache: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(pair.base.read_bytes()[:-1000])
    with pytest.raises(EngineError) as caught:
        importance_matrix(damaged, "ab" * 32, chunks_of(pair.base, 2), PLAIN, dataset="text")
    message = str(caught.value)
    assert message.startswith("damaged.gguf: no importance matrix could be computed: ")
    assert "not within the file bounds" in message
    assert "\n" not in message
    assert list((cache / "imatrix").iterdir()) == []


def test_one_that_is_killed_is_a_failure_that_leaves_nothing(pair: TinyPair, cache: Path) -> None:
    def kill_it(done: int, _total: int) -> None:
        if done == 1:
            (child,) = _children(os.getpid(), "kldcloud.models.imatrix")
            os.kill(child, signal.SIGKILL)

    chunks = np.tile(chunks_of(pair.base, 2), (500, 1))
    with pytest.raises(EngineError, match="it was killed by signal 9"):
        importance_matrix(pair.base, "ab" * 32, chunks, PLAIN, dataset="text", progress=kill_it)
    assert list((cache / "imatrix").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(
    pair: TinyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="set KLDCLOUD_CACHE to a folder with room"):
        importance_matrix(pair.base, "ab" * 32, chunks_of(pair.base, 2), PLAIN, dataset="text")


def test_what_goes_wrong_inside_the_callback_is_raised(
    pair: TinyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As after a change of the struct's layout: ggml would find the name elsewhere.
    monkeypatch.setattr(ggml_tensor, "_Tensor", _Shifted)
    with pytest.raises(EngineError, match="lays its tensors out in another way"):
        collect_imatrix(pair.base, chunks_of(pair.base, 2), PLAIN)


class _Shifted(ctypes.Structure):
    _fields_ = (("more", ctypes.c_int64), *ggml_tensor._Tensor._fields_)
