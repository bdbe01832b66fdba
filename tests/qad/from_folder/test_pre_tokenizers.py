"""Names that llama.cpp has for splittings: each is what the patterns of a tokenizer.json do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, pre_tokenizers

from kldcloud.errors import FormatError
from kldcloud.models.llama_tokenizer import open_llama_tokenizer
from kldcloud.qad.from_folder.metadata import tokenizer_metadata
from kldcloud.qad.from_folder.pre_tokenizers import GPT2, QWEN2, pre_tokenizer_name
from kldcloud.qad.from_folder.tokenizer_file import read_tokenizer
from kldcloud.qad.gguf_write import write_gguf
from tests.qad.from_folder.byte_tokenizers import (
    HARD,
    PATTERNS,
    byte_tokenizer,
    odd_text,
    write_byte_tokenizer,
)


def vocabulary_alone(folder: Path) -> Path:
    """A GGUF of a folder's tokenizer, without a model."""
    rows = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    facts = read_tokenizer(folder, rows)
    metadata = {
        "general.architecture": "llama",
        **tokenizer_metadata(facts, {}, "", add_bos=False),
    }
    write_gguf(folder / "vocabulary.gguf", metadata, [])
    return folder / "vocabulary.gguf"


@pytest.mark.parametrize("name", PATTERNS)
def test_llama_cpp_splits_by_a_name_as_the_tokenizers_package_by_its_patterns(
    name: str, tmp_path: Path
) -> None:
    made = byte_tokenizer(name)
    write_byte_tokenizer(tmp_path, made)
    texts = [HARD, *(odd_text(seed) for seed in range(4))]
    made.encode_special_tokens = True
    with open_llama_tokenizer(vocabulary_alone(tmp_path)) as tokenizer:
        for text in texts:
            np.testing.assert_array_equal(tokenizer.text(text), made.encode(text).ids)
    assert read_tokenizer(tmp_path, made.get_vocab_size()).pre == name


def test_no_two_names_do_the_same() -> None:
    """Else the test above would not tell a wrong name."""
    made = {name: byte_tokenizer(name).pre_tokenizer for name in PATTERNS}
    splits = {
        name: tuple(piece for piece, _ in each.pre_tokenize_str(HARD))
        for name, each in made.items()
    }
    assert len(set(splits.values())) == len(PATTERNS) - 1
    assert splits["llama-bpe"] == splits["smaug-bpe"]


def name_of(pre_tokenizer: Any, **changes: Any) -> str:
    made = {"pre_tokenizer": pre_tokenizer, "model": {}, **changes}
    return pre_tokenizer_name(Path("t.json"), made)


def as_json(pre_tokenizer: Any) -> Any:
    return json.loads(pre_tokenizer.__getstate__())


def test_other_ways_to_write_the_same_have_the_same_name() -> None:
    bytes_alone = as_json(pre_tokenizers.ByteLevel(add_prefix_space=False))
    digits = as_json(pre_tokenizers.Digits(individual_digits=True))
    assert name_of(bytes_alone) == "gpt-2"
    assert name_of({"type": "Sequence", "pretokenizers": [digits, bytes_alone]}) == "smollm"
    removed = {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Removed", "invert": True}
    plain = {**bytes_alone, "use_regex": False}
    nfc = {"type": "NFC"}
    sequence = {"type": "Sequence", "pretokenizers": [removed, plain]}
    assert name_of(sequence, normalizer=nfc) == "qwen2"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pre_tokenizer": None}, "not known here (None)"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "not known here (Whitespace)"),
        ({"pre_tokenizer": {"type": "Digits", "individual_digits": False}}, "(Digits)"),
        ({"pre_tokenizer": {"type": "Digits", "individual_digits": True}}, "end in ByteLevel"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "(ByteLevel)"),
        ({"normalizer": {"type": "Lowercase"}}, "changes text first (Lowercase)"),
        ({"model": {"ignore_merges": True}}, "and ignore_merges, and known here are only gpt-2,"),
    ],
)
def test_what_has_no_name_is_refused(change: dict[str, Any], reason: str) -> None:
    found = {"pre_tokenizer": as_json(pre_tokenizers.ByteLevel(add_prefix_space=False))} | change
    with pytest.raises(FormatError) as caught:
        name_of(**found)
    assert reason in caught.value.message
    assert "convert_hf_to_gguf.py" in str(caught.value.hint)


def test_a_pattern_that_is_nearly_known_is_refused() -> None:
    split = {
        "type": "Split",
        "pattern": {"Regex": GPT2 + "|x"},
        "behavior": "Isolated",
        "invert": False,
    }
    bytes_alone = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    with pytest.raises(FormatError, match="splits text by"):
        name_of({"type": "Sequence", "pretokenizers": [split, bytes_alone]})
