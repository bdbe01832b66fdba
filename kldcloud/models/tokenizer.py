"""The tokenizer of a model, whichever engine runs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from kldcloud.corpus.token_texts import TokenTexts
from kldcloud.errors import FormatError
from kldcloud.models.engine import Tokens, Vocabulary


class Tokenizer(Protocol):
    """A tokenizer that is open.

    Attributes:
        vocabulary: what cutting chunks needs to know of it.
    """

    vocabulary: Vocabulary

    @property
    def bos(self) -> str:
        """The text of the BOS token; empty if there is none."""
        ...

    @property
    def eos(self) -> str:
        """The text of the EOS token; empty if there is none."""
        ...

    def text(self, text: str) -> Tokens:
        """int32 [n] of a text: special tokens added, but not recognised inside."""
        ...

    def prompt(self, rendered: str) -> Tokens:
        """int32 [n] of what a chat template made: special tokens added and recognised."""
        ...

    def texts(self) -> TokenTexts:
        """What every token of the vocabulary stands for."""
        ...

    def chat_template(self) -> str:
        """The template that renders conversations; FormatError if there is none."""
        ...


@contextmanager
def open_tokenizer(path: Path) -> Iterator[Tokenizer]:
    """The tokenizer of a GGUF, or of a folder of safetensors, for as long as it is open.

    Raises:
        EngineError: if llama.cpp refuses the file.
        FormatError: if the folder's tokenizer is none.
        UserError: for a tokenizer that appends EOS.
    """
    if path.is_dir():
        from kldcloud.models.transformers_tokenizer import TransformersTokenizer

        yield TransformersTokenizer(path)
        return
    from kldcloud.models.llama_tokenizer import open_llama_tokenizer

    with open_llama_tokenizer(path) as tokenizer:
        yield tokenizer


def chat_template(path: Path) -> str:
    """The template that renders conversations for a model; of a GGUF without loading anything.

    Raises:
        FormatError: if there is none.
        UserError: a folder's needs transformers, which is not installed.
    """
    if path.is_dir():
        with open_tokenizer(path) as tokenizer:
            return tokenizer.chat_template()
    from kldcloud.models.llama_tokenizer import gguf_chat_template

    return gguf_chat_template(path)


def token_texts(path: Path) -> TokenTexts:
    """What the tokens of a model's vocabulary stand for; errors as of `open_tokenizer`."""
    with open_tokenizer(path) as tokenizer:
        return tokenizer.texts()


def no_chat_template(model: Path, where: str = "") -> FormatError:
    """What a model without a chat template is refused with; `where` one was looked for."""
    return FormatError(
        f"{model} has no chat template{where} to render conversations with",
        hint="take an instruction-tuned base that has one, or render the conversations yourself "
        "and give them as a text",
    )


@dataclass(frozen=True, slots=True)
class TokenDifference:
    """Where two tokenizers begin to read the same text differently.

    Attributes:
        at: number of the token.
        one: that of the first one: its number and its text, or ``"the end"``.
        other: that of the second one.
    """

    at: int
    one: str
    other: str


def first_difference(one: Tokens, other: Tokens, tokenizer: Tokenizer) -> TokenDifference | None:
    """Compare what two tokenizers made of the same text.

    Args:
        one: int32 [n].
        other: int32 [m].
        tokenizer: either of them, for the tokens' texts.

    Returns:
        None if they are the same.
    """
    both = min(len(one), len(other))
    differ = np.flatnonzero(one[:both] != other[:both])
    if not differ.size and len(one) == len(other):
        return None
    at = int(differ[0]) if differ.size else both
    texts = tokenizer.texts()

    def said(tokens: Tokens) -> str:
        if at >= len(tokens):
            return "the end"
        token = int(tokens[at])
        text = texts.alone(token) if token < len(texts.pieces) else ""
        return f"{token} {text!r}"

    return TokenDifference(at, said(one), said(other))
