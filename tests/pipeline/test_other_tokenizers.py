"""GGUF candidates with another tokenizer: other tokens are refused, another BOS is told of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest

from kldcloud.errors import FormatError
from kldcloud.pipeline.prepare import PreparedSweep, prepare
from kldcloud.spec.job import SweepJob
from tests.pipeline.sweeps import Notes, corpus, facts
from tests.rewritten import rewritten
from tests.tiny_models import TinyPair, tiny_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("pair"), vocabulary=321, bos=True)


def prepared(base: Path, candidate: Path, notes: Notes | None = None) -> PreparedSweep:
    job = facts(base, [candidate], [corpus(chunks=2)])
    return prepare(SweepJob.model_validate(job), notes or Notes())


def tokens_of(path: Path) -> list[str]:
    field = gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"]
    found: list[str] = field.contents()
    return found


def test_numbers_that_mean_other_tokens_are_refused(pair: TinyPair, tmp_path: Path) -> None:
    """As many tokens, and every probability of the wrong one: sizes alone would not tell."""
    tokens = tokens_of(pair.candidate)
    tokens[270], tokens[271] = tokens[271], tokens[270]
    other = rewritten(
        pair.candidate, tmp_path / "other.gguf", metadata={"tokenizer.ggml.tokens": tokens}
    )
    with pytest.raises(FormatError, match="candidate other cuts the text differently: token"):
        prepared(pair.base, other)


def test_a_token_that_the_text_never_has_may_be_called_otherwise(
    pair: TinyPair, tmp_path: Path
) -> None:
    """As publishers do with reserved tokens."""
    tokens = tokens_of(pair.candidate)
    tokens[2] = "<|im_end|>"
    other = rewritten(
        pair.candidate, tmp_path / "other.gguf", metadata={"tokenizer.ggml.tokens": tokens}
    )
    notes = Notes()
    assert prepared(pair.base, other, notes).candidates[0].name == "other"
    assert notes.warnings == []


@pytest.mark.parametrize(
    ("metadata", "warned"),
    [
        ({"tokenizer.ggml.add_bos_token": False}, "begins with its own first token"),
        ({"tokenizer.ggml.bos_token_id": 2}, "begins with BOS (2 '</s>')"),
        ({"tokenizer.ggml.add_bos_token": None}, None),  # its kind of tokenizer adds it by itself
    ],
)
def test_chunks_that_begin_otherwise_are_told_of(
    pair: TinyPair, tmp_path: Path, metadata: dict[str, Any], warned: str | None
) -> None:
    other = rewritten(pair.candidate, tmp_path / "other.gguf", metadata=metadata)
    notes = Notes()
    prepared(pair.base, other, notes)
    if warned is None:
        assert notes.warnings == []
    else:
        (line,) = notes.warnings
        assert line.startswith(f"candidate other: a chunk {warned}, by its file's tokenizer.ggml")
        assert "and the base's with BOS (1 '<s>')" in line
