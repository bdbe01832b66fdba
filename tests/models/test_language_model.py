"""GGUF files that are no language models are refused by name, before and by the engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rewritten import Value, rewritten
from tiny_models import CONTEXT, TinyPair, tiny_pair

from kldcloud.errors import FormatError, UserError
from kldcloud.models.gguf_header import read_gguf_header
from kldcloud.models.language_model import read_language_model
from kldcloud.models.llama_engine import LlamaEngine, LlamaOptions
from kldcloud.models.llama_tokenizer import open_llama_tokenizer

VOCABULARY = 300


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("pair"), vocabulary=VOCABULARY, bos=True)


def refusal(path: Path) -> str:
    with pytest.raises(FormatError) as caught:
        read_language_model(path)
    return str(caught.value)


def test_a_language_model_passes(pair: TinyPair) -> None:
    assert read_language_model(pair.base) == read_gguf_header(pair.base)


@pytest.mark.parametrize(
    ("architecture", "metadata", "complaint"),
    [
        ("modern-bert", {}, "modern-bert makes embeddings, and no logits"),
        ("gemma-embedding", {}, "gemma-embedding makes embeddings, and no logits"),
        ("t5", {}, "t5 has an encoder before its decoder"),
        ("llada", {}, "llada reads the tokens that it would be asked to predict"),
        ("eagle3", {}, "eagle3 drafts tokens for another model"),
        ("llama", {"llama.attention.causal": False}, "llama reads the tokens that it would be"),
        ("clip", {}, "is a projector for pictures or sound (mmproj), not a language model"),
        ("qwen2vl", {"general.type": "mmproj"}, "is a projector for pictures or sound (mmproj)"),
        ("llama", {"general.type": "adapter"}, "is an adapter (LoRA), not a language model; merge"),
        ("controlvector", {}, "is a control vector, not a language model"),
    ],
)
def test_what_is_none_is_named(
    pair: TinyPair,
    tmp_path: Path,
    architecture: str,
    metadata: Mapping[str, Value],
    complaint: str,
) -> None:
    path = rewritten(
        pair.base, tmp_path / "m.gguf", architecture=architecture, metadata=dict(metadata)
    )
    assert refusal(path).startswith(f"{path}: {complaint}")


@pytest.mark.parametrize("metadata", [{"llama.attention.causal": True}, {"general.type": "model"}])
def test_what_says_that_it_is_one_passes(
    pair: TinyPair, tmp_path: Path, metadata: Mapping[str, Value]
) -> None:
    read_language_model(rewritten(pair.base, tmp_path / "m.gguf", metadata=dict(metadata)))


def test_a_file_without_weights(pair: TinyPair, tmp_path: Path) -> None:
    names = read_gguf_header(pair.base).tensors
    path = rewritten(pair.base, tmp_path / "m.gguf", tensors=dict.fromkeys(names))
    assert "has no weights" in refusal(path)


def test_a_file_without_a_tokenizer(pair: TinyPair, tmp_path: Path) -> None:
    path = rewritten(pair.base, tmp_path / "m.gguf", metadata={"tokenizer.ggml.tokens": None})
    assert "has no tokenizer (tokenizer.ggml.tokens); convert" in refusal(path)


def test_a_tokenizer_that_appends_eos(pair: TinyPair, tmp_path: Path) -> None:
    """Of a candidate, only its worker would find out, when the base has been staged."""
    path = rewritten(
        pair.base, tmp_path / "m.gguf", metadata={"tokenizer.ggml.add_eos_token": True}
    )
    assert "its tokenizer appends an end-of-text token: chunks cannot" in refusal(path)


@pytest.mark.parametrize("name", ["token_embd.weight", "output.weight"])
def test_a_matrix_that_does_not_fit_the_tokenizer(
    pair: TinyPair, tmp_path: Path, name: str
) -> None:
    wider = np.zeros((VOCABULARY + 4, 64), np.float32)
    path = rewritten(pair.base, tmp_path / "m.gguf", tensors={name: wider})
    assert f"its {name} has 304 rows, its tokenizer 300 tokens" in refusal(path)


def test_the_engine_refuses_an_architecture_without_memory(pair: TinyPair, tmp_path: Path) -> None:
    """One that the list lacks: llama.cpp evaluates it, and its logits mean something else."""
    path = rewritten(pair.base, tmp_path / "m.gguf", architecture="dream")
    engine = LlamaEngine(path, 32, LlamaOptions())
    try:
        with pytest.raises(FormatError, match="remembers no token for this architecture"):
            engine.evaluate(np.arange(32, dtype=np.int32) % CONTEXT)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"architecture": "fantasy9"}, "model architecture 'fantasy9'"),
        (
            {"metadata": {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "fantasy"}},
            "pre-tokenizer type 'fantasy'",
        ),
    ],
)
def test_what_this_llama_does_not_know_is_the_users_to_mend(
    pair: TinyPair, tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    path = rewritten(
        pair.base,
        tmp_path / "m.gguf",
        architecture=changes.get("architecture"),
        metadata={"tokenizer.ggml.merges": ["h e"], **changes.get("metadata", {})},
    )
    with pytest.raises(UserError) as caught, open_llama_tokenizer(path):
        pass
    assert caught.value.message == f"{path}: this llama.cpp does not know the {what}"
    assert caught.value.exit_code == 2
