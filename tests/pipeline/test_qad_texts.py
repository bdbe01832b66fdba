"""A distillation's text in pieces: the parts that cutting all of it at once comes to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kldcloud.corpus.chunks import Tokens, cut_chunks
from kldcloud.errors import UserError
from kldcloud.models import long_text, long_tokens
from kldcloud.models.llama_tokenizer import LlamaTokenizer, open_llama_tokenizer
from kldcloud.pipeline import qad_texts as qad_texts_module
from kldcloud.pipeline.progress import Silent
from kldcloud.pipeline.qad_texts import QadTexts, qad_texts, tokens_digest
from kldcloud.pipeline.sources import HERE
from kldcloud.spec.qad_job import QadJob
from kldcloud.spec.uri import parse_uri
from kldcloud.store.digest import sha256_bytes
from tests.golden.cases import TEXT
from tests.tiny_models import BOS_ID, tiny_pair

CONTEXT = 64


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(long_tokens, "PIECE_BYTES", 3000)
    monkeypatch.setattr(long_text, "_BLOCK_BYTES", 4000)


@pytest.fixture(scope="module", params=[True, False], ids=["BOS", "no BOS"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    return tiny_pair(folder, vocabulary=321, bos=request.param).base


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(Path(TEXT).read_text().replace("the", "größer") * 3)
    return path


def job(model: Path, text: Path, chunks: Any = 4, heldout: Any = "all", **data: Any) -> QadJob:
    return QadJob.model_validate(
        {
            "kind": "qad",
            "name": "x",
            "teacher": str(model),
            "student": {"init": {"quantize": "Q4_0"}},
            "data": {"text": str(text), "context": CONTEXT, "heldout": 0.4, **data},
            "train": {"global_batch": 1},
            "eval": {"every": 1, "chunks": chunks, "heldout_chunks": heldout},
            "store": "s",
        }
    )


@dataclass(frozen=True)
class Whole:
    """Parts that were cut from a text in memory."""

    training: Tokens
    looks: Tokens
    proof: str


def whole(wanted: QadJob, text: str, tokenizer: LlamaTokenizer) -> Whole:
    text = text.removesuffix("\n")
    split = text.index("\n", round(len(text) * (1 - wanted.data.heldout))) + 1
    held = len(tokenizer.text(text[split:]))
    chunks = wanted.eval.chunks
    count = held // CONTEXT // 2 - 1 if chunks == "all" else chunks
    middle = split + round((len(text) - split) * ((count + 1) * CONTEXT / held))
    middle = text.index("\n", middle) + 1
    tokens = wanted.data.tokens
    limit = "all" if tokens == "all" else tokens // CONTEXT
    training = cut_chunks(tokenizer.text(text[:split]), CONTEXT, limit).copy()
    looks = cut_chunks(tokenizer.text(text[split:middle]), CONTEXT, count).copy()
    if tokenizer.vocabulary.add_bos:
        training[:, 0] = looks[:, 0] = BOS_ID
    return Whole(training, looks, text[middle:])


def parts(wanted: QadJob, model: Path) -> QadTexts:
    return qad_texts(wanted, model, Silent(), HERE)


@pytest.mark.parametrize("tokens", ["all", 1000, 64])
@pytest.mark.parametrize("chunks", [4, "all"])
def test_parts_are_those_of_the_whole_text(
    model: Path, text: Path, tokens: Any, chunks: Any
) -> None:
    wanted = job(model, text, chunks, tokens=tokens)
    found = parts(wanted, model)
    with open_llama_tokenizer(model) as tokenizer:
        alone = whole(wanted, text.read_text(), tokenizer)
    assert np.array_equal(found.training.open(), alone.training)
    assert np.array_equal(found.looks, alone.looks)
    assert found.proof.read_text() == alone.proof
    # What the ids of runs have been made of since the first one.
    shapes = repr([alone.training.shape, alone.looks.shape]).encode()
    data = shapes + alone.training.tobytes() + alone.looks.tobytes()
    assert tokens_digest(found.training, found.looks) == sha256_bytes(data)


def test_of_a_long_rest_no_more_is_measured_than_the_job_says(model: Path, text: Path) -> None:
    everything = parts(job(model, text), model).proof.read_text()
    for chunks in (2, 20, 50):
        proof = parts(job(model, text, heldout=chunks), model).proof.read_text()
        assert everything.startswith(proof)
        with open_llama_tokenizer(model) as tokenizer:
            found, wanted = (
                cut_chunks(tokenizer.text(each.removesuffix("\n")), CONTEXT, chunks)
                for each in (proof, everything)
            )
        assert np.array_equal(found, wanted)
    assert len(proof) < len(everything) / 2


def test_a_text_without_lines_is_cut_at_words(model: Path, text: Path) -> None:
    one_line = text.read_text().replace("\n", " ")
    text.write_text(one_line)
    found = parts(job(model, text, heldout=20), model)
    assert len(found.training.open()) > 200
    assert len(found.looks) == 4
    proof = found.proof.read_text()
    assert one_line[: one_line.index(proof)].endswith(" ")
    with open_llama_tokenizer(model) as tokenizer:
        assert len(tokenizer.text(proof)) >= 20 * CONTEXT


def with_second(wanted: QadJob, text: Path, chunks: Any = 16) -> QadJob:
    changed = {"second_text": parse_uri(str(text)), "second_chunks": chunks}
    return wanted.model_copy(update={"eval": wanted.eval.model_copy(update=changed)})


def test_of_a_long_second_text_no_more_is_measured_than_the_job_says(
    model: Path, text: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second.txt"
    second.write_text(text.read_text().upper())
    wanted = job(model, text)
    assert parts(wanted, model).second is None
    assert parts(with_second(wanted, second, "all"), model).second is None
    assert parts(with_second(wanted, second, 100_000), model).second is None
    found = parts(with_second(wanted, second, 3), model).second
    assert found is not None
    beginning = found.read_text()
    assert len(beginning) < second.stat().st_size / 4
    with open_llama_tokenizer(model) as tokenizer:
        some, whole = (
            cut_chunks(tokenizer.text(each.removesuffix("\n")), CONTEXT, 3)
            for each in (beginning, second.read_text())
        )
    assert np.array_equal(some, whole)


def test_more_than_llama_cpp_counts_is_refused_before_training(
    model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qad_texts_module, "MOST_AT_ONCE", 9000)
    said = r"data\.text: what looks leave of it has [0-9,]+ bytes, more than the 9,000 that llama"
    with pytest.raises(UserError, match=said):
        parts(job(model, text), model)
    parts(job(model, text, heldout=20), model)


def test_what_the_sweep_would_find_too_short_is_refused_before_training(
    model: Path, text: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second.txt"
    second.write_text("far too short")
    wanted = with_second(job(model, text), second)
    said = rf"eval\.second_text: the text has \d+ tokens, fewer than two chunks of {CONTEXT}"
    with pytest.raises(UserError, match=said):
        parts(wanted, model)
    # Tokens are not as dense everywhere: looks take more of these than their share.
    text.write_text("the " * 224 + "the\n" + "大" * 200 + "\n" + "the " * 100)
    with pytest.raises(
        UserError, match=r"data\.text: what looks leave of it has \d+ tokens, fewer"
    ):
        parts(job(model, text), model)


@pytest.mark.parametrize("chunks", [4, "all"])
def test_an_empty_text_is_refused_in_one_line(model: Path, text: Path, chunks: Any) -> None:
    text.write_text("")
    with pytest.raises(UserError, match=r"its held-out part has \d tokens, too few for [14] chunk"):
        parts(job(model, text, chunks), model)


def test_a_text_that_is_too_short_is_refused_and_leaves_nothing(
    model: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"data.text: its held-out part has [0-9,]+ tokens, too"):
        parts(job(model, text, 10_000), model)
    assert not list((tmp_path / "cache").glob("tokens/*"))
