"""A folder's tokenizer.json as what a GGUF keeps of a tokenizer, or what of it llama.cpp lacks.

Two kinds are known, told apart by how they treat a character without a token: GPT-2's, whose tokens
are spellings of bytes, and SentencePiece's, which falls back to a token for each byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kldcloud.errors import FormatError
from kldcloud.models.bounded_json import read_json_object
from kldcloud.qad.from_folder.pre_tokenizers import pre_tokenizer_name
from kldcloud.qad.from_folder.refusals import BY_LLAMA_CPP, refused_tokenizer
from kldcloud.qad.from_folder.sentencepiece import BYTES, adds_space, as_text, scores_of

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's `enum llama_token_type`."""

_FILE: Final = "tokenizer.json"
_MAX_BYTES: Final = 128 << 20
_MAX_VALUES: Final = 1 << 23  # Gemma 3 has 262K tokens and 515K merges of two
_PLAIN: Final = (None, "", 0, 0.0, False)
_CHANGES: Final = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
"""Settings of the model that nothing in a GGUF stands for."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenizerFacts:
    """A tokenizer as a GGUF has it.

    Attributes:
        model: ``"gpt2"`` or ``"llama"``, as `tokenizer.ggml.model`.
        pre: how text is split first, as `tokenizer.ggml.pre`; ``"default"`` for SentencePiece.
        tokens: one for each row of the embedding.
        kinds: int32 [V], see `NORMAL`.
        merges: pairs, the first one made first; empty for SentencePiece.
        scores: float32 [V], the highest is made first; None for GPT-2's.
        space_first: whether a text is read as if it began with a space.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    kinds: npt.NDArray[np.int32]
    merges: tuple[str, ...]
    scores: npt.NDArray[np.float32] | None
    space_first: bool


def read_tokenizer(folder: Path, rows: int) -> TokenizerFacts:
    """Read a folder's tokenizer.json.

    Args:
        folder: of the model.
        rows: of its embedding; those without a token get one that no text has.

    Raises:
        UserError: it cannot be read.
        FormatError: there is none, it is damaged, or is of a kind that is not known here.
    """
    path = folder / _FILE
    if not path.exists():
        raise FormatError(
            f"{folder}: has no {_FILE}, which says how text is split",
            hint=f"let transformers' save_pretrained write it, or {BY_LLAMA_CPP}",
        )
    found = read_json_object(path, max_bytes=_MAX_BYTES, max_values=_MAX_VALUES)
    model = found.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else None
        raise refused_tokenizer(path, f"its model is {str(kind)[:40]}, not BPE")
    for key in _CHANGES:
        if model.get(key) not in _PLAIN:
            raise refused_tokenizer(path, f"its model sets {key}, which a GGUF does not say")
    vocabulary = _vocabulary(path, model)
    tokens, kinds = _tokens(path, vocabulary, _added(path, found), rows)
    merges = _merges(path, model, vocabulary)
    if model.get("byte_fallback") is True:
        kinds[[index for index, token in enumerate(tokens) if token in BYTES]] = BYTE
        unknown = model.get("unk_token")
        if isinstance(unknown, str) and unknown in vocabulary:
            kinds[vocabulary[unknown]] = UNKNOWN
        scores = scores_of(path, tokens, kinds == NORMAL, merges)
        space = adds_space(path, found)
        tokens = tuple(
            as_text(token) if kind == USER_DEFINED else token
            for token, kind in zip(tokens, kinds, strict=True)
        )
        return TokenizerFacts("llama", "default", tokens, kinds, (), scores, space)
    if any(" " in part for pair in merges for part in pair):
        raise refused_tokenizer(path, "has a merge with a space in it, which a GGUF cannot keep")
    pre = pre_tokenizer_name(path, found)
    joined = tuple(map(" ".join, merges))
    return TokenizerFacts("gpt2", pre, tokens, kinds, joined, None, space_first=False)


def _vocabulary(path: Path, model: Mapping[str, Any]) -> Mapping[str, int]:
    found = model.get("vocab")
    if not isinstance(found, dict) or not all(type(each) is int for each in found.values()):
        raise refused_tokenizer(path, "its vocab does not map tokens to numbers")
    return found


def _added(path: Path, found: Mapping[str, Any]) -> Mapping[int, tuple[str, bool]]:
    """Tokens found before text is split: number -> token, and whether it is special."""
    added = {}
    entries = found.get("added_tokens")
    for entry in entries if isinstance(entries, list) else ():
        number = entry.get("id") if isinstance(entry, dict) else None
        if type(number) is not int or not isinstance(entry.get("content"), str):
            raise refused_tokenizer(path, "has an added token without id or content")
        added[number] = (entry["content"], entry.get("special") is True)
    return added


def _tokens(
    path: Path,
    vocabulary: Mapping[str, int],
    added: Mapping[int, tuple[str, bool]],
    rows: int,
) -> tuple[tuple[str, ...], npt.NDArray[np.int32]]:
    # Gemma 3's smallest has a token for pictures, and neither pictures nor a row for it.
    added = {at: each for at, each in added.items() if at < rows or not each[1]}
    numbers = [*vocabulary.values(), *added]
    if numbers and not 0 <= min(numbers) <= max(numbers) < rows:
        raise refused_tokenizer(
            path, f"has a token of number {max(numbers):,}, and the embedding has {rows:,} rows"
        )
    tokens = [f"[PAD{index}]" for index in range(rows)]
    kinds = np.full(rows, UNUSED, np.int32)
    for token, number in vocabulary.items():
        if kinds[number] != UNUSED:
            raise refused_tokenizer(path, f"has two tokens of number {number:,}")
        tokens[number], kinds[number] = token, NORMAL
    for number, (token, special) in added.items():
        if kinds[number] == NORMAL and tokens[number] != token:
            raise refused_tokenizer(path, f"has two tokens of number {number:,}")
        tokens[number], kinds[number] = token, CONTROL if special else USER_DEFINED
    return tuple(tokens), kinds


def _merges(
    path: Path, model: Mapping[str, Any], vocabulary: Mapping[str, int]
) -> Sequence[tuple[str, str]]:
    """Pairs in the order of their rank; older files have them as texts, with a space between."""
    found = model.get("merges")
    merges = []
    for entry in found if isinstance(found, list) else ():
        parts = entry.split(" ", 1) if isinstance(entry, str) else entry
        match parts:
            case [str(left), str(right)] if left + right in vocabulary:
                merges.append((left, right))
            case _:
                raise refused_tokenizer(path, f"has a merge that makes no token: {str(entry)[:40]}")
    if not merges:
        raise refused_tokenizer(path, "has no merges")
    return merges
