"""Corpora of conversations: one real sweep, what decides its tokens, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import Llama
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from kldcloud.errors import FormatError, UserError
from kldcloud.pipeline.launches import job_digest, ship
from kldcloud.pipeline.options import engines
from kldcloud.pipeline.plan import SweepPlan, make_plan
from kldcloud.pipeline.prepare import prepare
from kldcloud.pipeline.runs import what_counts
from kldcloud.pipeline.sources import Sources
from kldcloud.report.reading import corpus_note
from kldcloud.report.table import corpus_tables
from kldcloud.spec.job import SweepJob
from kldcloud.staging.stage import StageIdentity
from kldcloud.store import open_store
from kldcloud.store.digest import sha256_bytes
from tests.pipeline.sweeps import TEXT, Notes, corpus, facts, result_bytes, sweep
from tests.tiny_models import BOS_ID, TinyPair, tiny_pair

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ raise_exception('There are no tools') }}{% endif %}"
    "[{{ m.role }}]\n{{ m.content | trim }}{{ eos_token }}\n{% endfor %}"
)
BARE = "{% for m in messages %}{{ m.content }}{% endfor %}"
CONTEXT = 64


def paragraphs() -> list[str]:
    return [each for each in TEXT.read_text().split(". ") if each]


def talks() -> list[list[dict[str, str]]]:
    """Conversations of two to four messages from the text of the golden files."""
    said = paragraphs()
    pairs = [
        [{"role": "user", "content": one}, {"role": "assistant", "content": other}]
        for one, other in zip(said[::2], said[1::2], strict=False)
    ]
    return [pairs[0] + pairs[1], *pairs[2:]]


def write_talks(path: Path, conversations: Sequence[Any]) -> Path:
    lines = [json.dumps({"messages": each}, ensure_ascii=False) for each in conversations]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def chat(path: Path, chunks: int | str = "all", name: str = "talks") -> dict[str, Any]:
    return {**corpus(CONTEXT, chunks, name, path), "format": "chat"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    folder = tmp_path_factory.mktemp("chat")
    return tiny_pair(folder, vocabulary=320, bos=True, template=TEMPLATE)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("bare"), vocabulary=320, bos=True, template=BARE)


@pytest.fixture(scope="module")
def talk_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_talks(tmp_path_factory.mktemp("talks") / "talks.jsonl", talks())


def plan_of(job: dict[str, Any]) -> SweepPlan:
    spec = SweepJob.model_validate(job)
    return make_plan(prepare(spec, Notes()), engines(spec.engine, 1), remote=False)


def expected_chunks(path: Path, template: str) -> Any:
    """What the reference formatter and llama-cpp-python's own tokenizer make of the talks."""
    model = Llama(str(path), vocab_only=True, verbose=False)
    formatter = Jinja2ChatFormatter(template, "</s>", "<s>", add_generation_prompt=False)
    tokens: list[int] = []
    for each in talks():
        prompt = str(formatter(messages=each).prompt).removeprefix("<s>")  # type: ignore[arg-type]
        tokens += model.tokenize(prompt.encode(), add_bos=True, special=True)
    model.close()
    whole = len(tokens) // CONTEXT
    return len(tokens), np.array(tokens[: whole * CONTEXT], np.int32).reshape(whole, CONTEXT)


@pytest.mark.usefixtures("one_ray")
def test_a_sweep_of_a_text_and_of_conversations(
    pair: TinyPair, talk_file: Path, tmp_path: Path
) -> None:
    job = facts(pair.base, [pair.candidate], [corpus(CONTEXT, 6), chat(talk_file, 6)])
    tokens, _ = expected_chunks(pair.base, TEMPLATE)
    outcome = sweep(job, tmp_path / "one", workers=2)
    text, talk = outcome.summary.corpora
    assert (talk.name, talk.tokens, talk.chunks) == ("talks", tokens, 6)
    assert (text.format, talk.format) == ("text", "chat")
    notes = [corpus_note(each) for each in corpus_tables(outcome.summary)]
    assert [each.endswith("conversations in the base's chat template") for each in notes] == [
        False,
        True,
    ]
    assert talk.sha256 == sha256_bytes(talk_file.read_bytes())
    by_corpus = {each.corpus: each.result for each in outcome.summary.results}
    for name, kept in (("text", text), ("talks", talk)):
        found = by_corpus[name]
        assert found is not None
        assert found.tokens == kept.chunks * (CONTEXT // 2 - 1)
        assert (found.kld.mean.value or 0) > 0
    # Alone it comes to the same, and so does a file with the same conversations in other words.
    other = write_talks(tmp_path / "other.jsonl", [])
    lines = [
        {
            "id": at,
            "conversations": [
                {"from": {"user": "human"}.get(m["role"], "gpt"), "value": m["content"]}
                for m in each
            ],
        }
        for at, each in enumerate(talks())
    ]
    other.write_text("\n\n".join(json.dumps(each) for each in lines))
    alone = sweep({**job, "corpora": [chat(other, 6)]}, tmp_path / "one")
    (result,) = alone.summary.results
    assert result.result == by_corpus["talks"]
    again = sweep(job, tmp_path / "two", workers=1)
    assert again.run == outcome.run
    assert result_bytes(tmp_path / "two", again.run) == result_bytes(tmp_path / "one", again.run)


def test_the_chunks_are_the_references_tokens_one_conversation_after_the_other(
    pair: TinyPair, talk_file: Path
) -> None:
    prepared = prepare(
        SweepJob.model_validate(facts(pair.base, [pair.candidate], [chat(talk_file)])), Notes()
    )
    (found,) = prepared.corpora
    tokens, chunks = expected_chunks(pair.base, TEMPLATE)
    assert found.text_tokens == tokens
    assert (found.chunks == chunks).all()
    # One BOS for each conversation, though template and tokenizer both write it.
    assert (chunks == BOS_ID).sum() == len(talks())


def test_tokens_decide_and_neither_format_nor_words_do(bare: TinyPair, tmp_path: Path) -> None:
    text = TEXT.read_text().removesuffix("\n")
    talk = [{"role": "user", "content": text}]
    as_text = facts(bare.base, [bare.candidate], [corpus(CONTEXT, 8)])
    as_talk = facts(
        bare.base, [bare.candidate], [chat(write_talks(tmp_path / "t.jsonl", [talk]), 8, "text")]
    )
    one, other = plan_of(as_text), plan_of(as_talk)
    assert one.stages == other.stages
    assert one.run == other.run


def test_a_text_has_the_identity_that_it_had_before_there_were_formats(pair: TinyPair) -> None:
    plain = facts(pair.base, [pair.candidate], [corpus(CONTEXT, 8)])
    said = {**plain, "corpora": [{**corpus(CONTEXT, 8), "format": "text"}]}
    one, other = plan_of(plain), plan_of(said)
    assert (one.run, one.stages) == (other.run, other.stages)
    # What a stage's key is made of, and the tokens as llama.cpp's own binding has them.
    assert {each.name for each in fields(StageIdentity)} == {
        *("base_sha256", "tokens_sha256", "context", "chunks", "vocabulary"),
        *("encoding", "engine"),
    }
    model = Llama(str(pair.base), vocab_only=True, verbose=False)
    text = TEXT.read_bytes().removesuffix(b"\n")
    tokens = np.array(model.tokenize(text, add_bos=True, special=False), "<i4")[: 8 * CONTEXT]
    model.close()
    assert one.stages[0].tokens_sha256 == sha256_bytes(tokens.tobytes())
    # Stores have jobs without the word: a job is found by its file there, and so is its launch.
    job = SweepJob.model_validate(plain)
    kept = job.model_dump(mode="json")
    del kept["corpora"][0]["format"]
    assert what_counts(kept) == what_counts(job.model_dump(mode="json"))
    talk = SweepJob.model_validate({**plain, "corpora": [{**corpus(), "format": "chat"}]})
    assert job_digest(talk) != job_digest(SweepJob.model_validate({**plain, "corpora": [corpus()]}))


REFUSED = {
    "a line that is none": ("{", r"line 1 is not JSON"),
    "a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        r"line 1: messages\[0\] has a part of type 'image_url'",
    ),
    "a role that the template refuses": (
        {"messages": [{"role": "tool", "content": "x"}]},
        "line 1: the chat template refuses it: There are no tools; change or take out the line",
    ),
    "too few": (
        {"messages": [{"role": "user", "content": "x"}]},
        "tokens, fewer than two chunks of 64",
    ),
}


@pytest.mark.parametrize(("line", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_measured_is_refused_in_one_line(
    pair: TinyPair, tmp_path: Path, line: Any, words: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(line if isinstance(line, str) else json.dumps(line))
    job = SweepJob.model_validate(facts(pair.base, [pair.candidate], [chat(path)]))
    with pytest.raises(UserError, match=words) as caught:
        prepare(job, Notes())
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith("corpus talks: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("template", [None, "", " \n"])
def test_a_base_without_a_template_is_refused_with_what_to_do(
    tmp_path: Path, talk_file: Path, template: str | None
) -> None:
    plain = tiny_pair(tmp_path, vocabulary=320, bos=True, template=template)
    job = SweepJob.model_validate(facts(plain.base, [plain.candidate], [chat(talk_file)]))
    words = r"base\.gguf has no chat template .*; take an instruction-tuned base"
    for attempt in (
        lambda: prepare(job, Notes()),
        lambda: ship(job, open_store(str(tmp_path / "store")), Notes()),
    ):
        with pytest.raises(FormatError, match=words):
            attempt()


def test_conversations_travel_like_texts_and_are_looked_at_first(
    pair: TinyPair, talk_file: Path, tmp_path: Path
) -> None:
    store = open_store(str(tmp_path / "store"))
    job = SweepJob.model_validate(facts(pair.base, [pair.candidate], [chat(talk_file)]))
    shipped = ship(job, store, Notes())
    assert str(talk_file) in {each.uri for each in shipped}
    there = Sources(store, {each.uri: each for each in shipped})
    here, elsewhere = prepare(job, Notes()), prepare(job, Notes(), there)
    assert (here.corpora[0].chunks == elsewhere.corpora[0].chunks).all()
    assert here.corpora[0].text_sha256 == elsewhere.corpora[0].text_sha256
    bad = tmp_path / "bad.jsonl"
    bad.write_text(talk_file.read_text() + "oops\n")
    empty = open_store(str(tmp_path / "other"))
    wrong = SweepJob.model_validate(facts(pair.base, [pair.candidate], [chat(bad)]))
    number = len(talks()) + 1
    with pytest.raises(FormatError, match=f"^corpus talks: line {number} is not JSON"):
        ship(wrong, empty, Notes())
    assert list(empty.list("models/")) == []
