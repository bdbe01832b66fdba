"""The tiny models: what the other tests lean on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from kldcloud.models.gguf_header import read_gguf_header
from tests.golden.cases import CASES, TEXT, GoldenCase
from tests.tiny_models import TinyPair, pieces, tiny_pair


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_pairs_are_the_ones_that_the_goldens_were_made_from(
    case: GoldenCase, tmp_path: Path
) -> None:
    pair = tiny_pair(tmp_path, vocabulary=case.vocabulary, bos=case.bos)
    assert digest(pair.base) == case.made_from["base_model_sha256"]
    assert digest(pair.candidate) == case.made_from["candidate_model_sha256"]
    assert digest(TEXT) == case.made_from["text_sha256"]


def test_another_seed_makes_other_weights(tmp_path: Path) -> None:
    pairs = [tiny_pair(tmp_path / str(s), vocabulary=320, bos=True, seed=s) for s in (0, 1)]
    assert len({digest(pair.base) for pair in pairs}) == 2
    assert len({digest(pair.candidate) for pair in pairs}) == 2


@pytest.mark.parametrize("vocabulary", [287, 320, 321, 3000])
def test_no_piece_is_there_twice(vocabulary: int) -> None:
    assert len(set(pieces(vocabulary))) == vocabulary


def test_the_base_is_f32_and_the_candidate_f16(tmp_path: Path) -> None:
    pair = tiny_pair(tmp_path, vocabulary=321, bos=False)
    for path, kind in ((pair.base, "F32"), (pair.candidate, "F16")):
        header = read_gguf_header(path)
        assert header.vocabulary_size == 321
        assert header.metadata["tokenizer.ggml.add_bos_token"] is False
        matrices = [tensor for tensor in header.tensors.values() if len(tensor.shape) == 2]
        assert {tensor.type_name for tensor in matrices} == {kind}


@pytest.mark.parametrize("bos", [True, False])
def test_the_engine_loads_both_and_splits_any_text(tmp_path: Path, bos: bool) -> None:
    engine = pytest.importorskip("llama_cpp")
    pair: TinyPair = tiny_pair(tmp_path, vocabulary=320, bos=bos)
    for path in (pair.base, pair.candidate):
        llama = engine.Llama(str(path), vocab_only=True, verbose=False)
        assert engine.llama_vocab_get_add_bos(llama._model.vocab) is bos
        tokens = llama.tokenize("The other Zürich, 1984 €\n".encode(), add_bos=bos)
        assert (tokens[0] == 1) is bos
        assert all(0 <= token < 320 for token in tokens)
        assert llama.detokenize(tokens).decode().strip(" ") == "The other Zürich, 1984 €\n"
        llama.close()
