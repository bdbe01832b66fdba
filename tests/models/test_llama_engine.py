"""llama.cpp as an engine: logits that depend on the model and the chunk, and on nothing else."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest

from kldcloud.corpus.chunks import ChunkShape
from kldcloud.divergence.base_rows import LogitRows
from kldcloud.divergence.kernel import token_statistics
from kldcloud.errors import EngineError, UserError
from kldcloud.models import llama_engine, llama_library
from kldcloud.models.gguf_header import read_gguf_header
from kldcloud.models.llama_context import BATCH
from kldcloud.models.llama_engine import LlamaEngine, LlamaOptions
from kldcloud.models.llama_library import build_facts, llama
from kldcloud.models.llama_tokenizer import tokenize
from kldcloud.spec.engine import KvType
from kldcloud.staging.head import read_head
from kldcloud.staging.states import pack_states, unpack_states
from tests.golden.cases import TEXT
from tests.pipeline.odd_models import hungry
from tests.tiny_models import BOS_ID, TinyPair, tiny_pair

Tokens = npt.NDArray[np.int32]
PLAIN = LlamaOptions()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("bos"), vocabulary=321, bos=True)


@pytest.fixture(scope="module")
def without_bos(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("nobos"), vocabulary=321, bos=False)


@pytest.fixture(scope="module")
def tokens(pair: TinyPair) -> Tokens:
    return tokenize(pair.base, TEXT.read_text()).tokens


def evaluate(path: Path, chunk: Tokens, options: LlamaOptions = PLAIN) -> npt.NDArray[np.float32]:
    """A chunk's logits from a fresh engine; a copy."""
    engine = LlamaEngine(path, len(chunk), options)
    try:
        return engine.evaluate(chunk).logits.copy()
    finally:
        engine.close()


@pytest.mark.parametrize("context", [8, 9, 128, 700])
def test_a_chunk_gives_one_row_a_scored_position(
    pair: TinyPair, tokens: Tokens, context: int
) -> None:
    logits = evaluate(pair.base, tokens[:context])
    assert logits.shape == (ChunkShape(context).rows, 321)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("model", ["base", "candidate"])
def test_threads_change_no_bit(pair: TinyPair, tokens: Tokens, model: str) -> None:
    path = getattr(pair, model)
    found = {
        evaluate(path, tokens[:256], LlamaOptions(threads=threads)).tobytes()
        for threads in (1, 2, 3)
    }
    assert len(found) == 1


def test_what_was_evaluated_before_changes_no_bit(pair: TinyPair, tokens: Tokens) -> None:
    chunks = tokens[: 4 * 128].reshape(4, 128)
    fresh = [evaluate(pair.candidate, chunk).tobytes() for chunk in chunks]
    assert len(set(fresh)) == 4
    engine = LlamaEngine(pair.candidate, 128, PLAIN)
    for at in (2, 0, 0, 3, 1, 2):
        hidden = at % 2 == 0
        assert engine.evaluate(chunks[at], hidden=hidden).logits.tobytes() == fresh[at]
    engine.close()


ON_GPU = LlamaOptions(n_gpu_layers=-1)
"""This build may have no GPU: then llama.cpp evaluates on the CPU, and all else is as with one."""


@pytest.mark.parametrize("context", [128, BATCH + 300])
def test_where_a_gpu_evaluates_the_logits_of_two_chunks_are_there_at_once(
    pair: TinyPair, tokens: Tokens, context: int
) -> None:
    chunks = [tokens[at * 100 : at * 100 + context] for at in range(5)]
    engine = LlamaEngine(pair.base, context, ON_GPU)
    before = engine.evaluate(chunks[0]).logits
    copies = [before.copy()]
    for chunk in chunks[1:]:
        logits = engine.evaluate(chunk).logits
        assert engine.kept == 2
        assert (before == copies[-1]).all()
        copies.append(logits.copy())
        before = logits
    assert engine.evaluate(chunks[0], hidden=True).hidden is not None
    assert (before == copies[-1]).all()
    engine.close()
    fresh = [evaluate(pair.base, chunk, ON_GPU).tobytes() for chunk in chunks]
    assert [each.tobytes() for each in copies] == fresh


@pytest.mark.parametrize(
    ("before", "after", "contexts"),
    [([900], [600], 2), ([900], [599], 1), ([900, 900], [600, 500], 1), ([900], [950], 2)],
)
def test_a_second_context_needs_what_the_first_took_twice_over(
    pair: TinyPair,
    tokens: Tokens,
    monkeypatch: pytest.MonkeyPatch,
    before: list[int],
    after: list[int],
    contexts: int,
) -> None:
    told = iter([before, after])
    monkeypatch.setattr(llama_engine, "free_on_gpus", lambda: next(told))
    engine = LlamaEngine(pair.base, 128, ON_GPU)
    for _ in range(3):
        engine.evaluate(tokens[:128])
    assert engine.kept == contexts
    engine.close()


def test_without_memory_for_a_second_context_the_first_goes_on(
    pair: TinyPair, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = LlamaEngine(pair.base, 128, ON_GPU)
    make, asked = llama().llama_init_from_model, []

    def once(*given: Any) -> Any:
        asked.append(given)
        return make(*given) if len(asked) == 1 else None

    monkeypatch.setattr(llama(), "llama_init_from_model", once)
    first = engine.evaluate(tokens[:128]).logits.copy()
    assert (engine.evaluate(tokens[:128]).logits == first).all()
    assert len(asked) == 2
    assert engine.kept == 1
    engine.close()


def test_on_a_cpu_one_context_does(pair: TinyPair, tokens: Tokens) -> None:
    engine = LlamaEngine(pair.base, 128, PLAIN)
    for _ in range(3):
        engine.evaluate(tokens[:128])
    assert engine.kept == 1
    engine.close()


@pytest.mark.parametrize("model", ["base", "candidate"])
@pytest.mark.parametrize("context", [128, BATCH + 300])
def test_hidden_states_times_the_head_are_the_logits(
    pair: TinyPair, tokens: Tokens, model: str, context: int
) -> None:
    path: Path = getattr(pair, model)
    head = read_head(path, read_gguf_header(path))
    engine = LlamaEngine(path, context, PLAIN)
    output = engine.evaluate(tokens[:context], hidden=True)
    assert output.hidden is not None
    rows = len(output.logits)
    packed = pack_states(output.hidden, head.type_name)
    rebuilt = np.empty_like(output.logits)
    head.logits(unpack_states(packed, head.type_name, rows, head.width), out=rebuilt)
    assert np.abs(rebuilt - output.logits).max() < 1e-4
    statistics = token_statistics(
        LogitRows(rebuilt), output.logits, ChunkShape(context).next_tokens(tokens[:context])
    )
    assert abs(statistics.kld.mean()) < 1e-8
    assert (statistics.top == statistics.top_base).all()
    engine.close()


def test_hidden_states_are_only_copied_when_they_are_wanted(pair: TinyPair, tokens: Tokens) -> None:
    engine = LlamaEngine(pair.base, 128, PLAIN)
    first = engine.evaluate(tokens[:128], hidden=True).hidden
    assert first is not None
    kept = first.copy()
    assert engine.evaluate(tokens[128:256]).hidden is None
    assert (first == kept).all(), "the states of a chunk must outlive the next"
    engine.close()


@pytest.mark.parametrize("context", [BATCH + 1, BATCH + 300, 2 * BATCH])
def test_a_context_of_two_batches_gives_the_rows_that_one_batch_would(
    pair: TinyPair, tokens: Tokens, context: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(tokens) >= 2 * BATCH
    in_two = evaluate(pair.base, tokens[:context])
    monkeypatch.setattr("kldcloud.models.llama_context.BATCH", 2 * BATCH)
    in_one = evaluate(pair.base, tokens[:context])
    assert in_two.shape == in_one.shape == (ChunkShape(context).rows, 321)
    assert np.abs(in_two - in_one).max() < 1e-4


def test_bos_stands_first_where_the_vocabulary_says_so_and_nowhere_else(
    pair: TinyPair, without_bos: TinyPair, tokens: Tokens
) -> None:
    chunk = tokens[128:256].copy()
    replaced = chunk.copy()
    replaced[0] = BOS_ID
    assert chunk[0] != BOS_ID
    with_bos = evaluate(pair.base, chunk)
    assert (with_bos == evaluate(pair.base, replaced)).all()
    plain = evaluate(without_bos.base, chunk)
    assert (evaluate(without_bos.base, replaced) == with_bos).all()
    assert (plain != with_bos).any()
    assert chunk[0] != BOS_ID, "the caller's tokens are not touched"


def test_a_text_is_tokenised_with_its_special_tokens_added_and_not_recognised(
    pair: TinyPair, without_bos: TinyPair
) -> None:
    added = tokenize(pair.base, "the text </s>")
    plain = tokenize(without_bos.base, "the text </s>")
    assert added.tokens[0] == BOS_ID
    assert (added.tokens[1:] == plain.tokens).all()
    assert 2 not in plain.tokens
    assert (added.vocabulary.size, added.vocabulary.add_bos, added.vocabulary.bos) == (321, True, 1)
    assert not plain.vocabulary.add_bos


def test_an_empty_text_has_no_tokens_but_bos(pair: TinyPair, without_bos: TinyPair) -> None:
    assert tokenize(pair.base, "").tokens.tolist() == [BOS_ID]
    assert tokenize(without_bos.base, "").tokens.tolist() == []


def test_an_override_to_a_buffer_that_this_build_has_changes_no_bit(
    pair: TinyPair, tokens: Tokens
) -> None:
    kept = LlamaOptions(tensor_overrides={r"ffn_.*": "CPU"})
    chunk = tokens[:128]
    assert (evaluate(pair.base, chunk, kept) == evaluate(pair.base, chunk)).all()


def test_an_override_to_an_unknown_buffer_names_the_ones_there_are(pair: TinyPair) -> None:
    options = LlamaOptions(tensor_overrides={r"ffn_.*": "CUDA7"})
    with pytest.raises(UserError, match=r"engine\.tensor_overrides: no buffer type 'CUDA7'.*CPU"):
        LlamaEngine(pair.base, 128, options)


def test_what_moves_a_logit_is_in_the_fingerprint_and_threads_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of a build that cannot repack, the option moves nothing.
    monkeypatch.setattr(llama_engine, "extra_buffers_work", lambda: True)
    plain = PLAIN.fingerprint()
    assert replace(PLAIN, threads=3).fingerprint() == plain
    for changes in (
        {"n_gpu_layers": 1},
        {"tensor_overrides": {"a": "CPU"}},
        {"flash_attention": "off"},
        {"kv_type_k": "f32"},
        {"kv_type_v": "f32"},
        {"repack": False},
    ):
        assert replace(PLAIN, **changes).fingerprint() != plain  # type: ignore[arg-type]  # fields
    assert {"version", "backend", "instructions"} <= set(plain)


def test_without_layers_on_a_gpu_no_device_is_handed_over(
    pair: TinyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A null list means every GPU there is, which then multiply large batches; this one is empty.
    lists: list[list[int | None] | None] = []
    load = llama().llama_model_load_from_file

    def watch(path: bytes, params: Any) -> object:
        first = params.devices
        lists.append([ctypes.c_void_p.from_address(first).value] if first else None)
        return load(path, params)

    monkeypatch.setattr(llama(), "llama_model_load_from_file", watch)
    for layers in (0, 1):
        LlamaEngine(pair.base, 128, LlamaOptions(n_gpu_layers=layers)).close()
    assert lists == [[None], None]


@pytest.mark.parametrize(("layers", "backend"), [(0, "CPU"), (-1, "GPU"), (4, "GPU")])
def test_a_gpu_is_in_the_fingerprint_where_it_may_do_work(
    layers: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama(), "llama_supports_gpu_offload", lambda: True)
    monkeypatch.setattr(
        llama_library,
        "_accelerators",
        lambda *, gpus: ["BLAS", "Some GPU"] if gpus else ["BLAS"],
    )
    build_facts.cache_clear()
    try:
        # Asked for by another model first: the one's answer must not become the other's.
        PLAIN.fingerprint()
        facts = LlamaOptions(n_gpu_layers=layers).fingerprint()
        assert facts["backend"] == backend
        assert ("Some GPU" in facts["devices"]) == (backend == "GPU")
    finally:
        build_facts.cache_clear()


def test_what_tells_ggml_to_compute_in_another_way_is_in_the_fingerprint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = PLAIN.fingerprint()
    assert "switches" not in plain
    monkeypatch.setenv("GGML_VK_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("GGML_CUDA_MMQ_PREC", "f32")
    monkeypatch.setenv("GGML_CUDA_DISABLE_FUSION", "1")
    build_facts.cache_clear()
    try:
        switches = "GGML_CUDA_DISABLE_FUSION=1 GGML_CUDA_MMQ_PREC=f32"
        assert PLAIN.fingerprint() == plain | {"switches": switches}
    finally:
        build_facts.cache_clear()


@pytest.mark.parametrize(
    "options", [LlamaOptions(flash_attention="off"), LlamaOptions(kv_type_k="bf16")]
)
def test_engine_options_reach_the_engine(
    pair: TinyPair, tokens: Tokens, options: LlamaOptions
) -> None:
    chunk = tokens[:128]
    assert (evaluate(pair.candidate, chunk, options) != evaluate(pair.candidate, chunk)).any()


@pytest.mark.parametrize("kind", get_args(KvType))
def test_every_cache_type_that_a_job_may_name_reaches_llama_cpp(
    kind: str, tmp_path: Path, tokens: Tokens
) -> None:
    # A head of 128 values is whole blocks of each.
    path = hungry(tmp_path / "wide.gguf", 321, 128)
    logits = evaluate(path, tokens[:64], LlamaOptions(kv_type_k=kind, kv_type_v=kind))
    assert np.isfinite(logits).all()


def test_a_file_that_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "none.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(EngineError, match=r"none\.gguf: llama\.cpp could not load it") as caught:
        LlamaEngine(path, 128, PLAIN)
    assert "\n" not in str(caught.value)
    with pytest.raises(EngineError, match="could not load it"):
        tokenize(path, "text")


def test_a_tokenizer_that_appends_eos_is_refused(pair: TinyPair, tmp_path: Path) -> None:
    path = tmp_path / "eos.gguf"
    data = pair.base.read_bytes()
    key = b"tokenizer.ggml.add_eos_token" + (7).to_bytes(4, "little")
    assert data.count(key + b"\0") == 1
    path.write_bytes(data.replace(key + b"\0", key + b"\1"))
    with pytest.raises(UserError, match="appends an end-of-text token"):
        tokenize(path, "text")


def test_options_that_fit_no_context_are_refused_by_name(pair: TinyPair, tokens: Tokens) -> None:
    # A head of 16 values is no whole block of this type.
    with pytest.raises(EngineError, match=r"could not make a context .* does not divide"):
        evaluate(pair.base, tokens[:128], LlamaOptions(kv_type_k="q8_0"))


def test_an_engine_that_could_not_be_made_leaves_no_model_behind(
    pair: TinyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[object] = []
    free = llama().llama_model_free

    def watch(model: ctypes.c_void_p) -> None:
        freed.append(model)
        free(model)

    monkeypatch.setattr(llama(), "llama_model_free", watch)
    monkeypatch.setattr(llama(), "llama_vocab_get_add_eos", lambda _: True)
    with pytest.raises(UserError, match="appends an end-of-text token"):
        LlamaEngine(pair.base, 128, PLAIN)
    assert len(freed) == 1


def test_an_engine_can_be_closed_twice(pair: TinyPair) -> None:
    engine = LlamaEngine(pair.base, 128, PLAIN)
    engine.close()
    engine.close()
