"""A GGUF's vocabulary at work: texts as llama-perplexity, prompts as llama.cpp's server reads them.

Only the vocabulary is loaded, no weights.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from kldcloud.corpus.token_texts import TokenTexts
from kldcloud.errors import EngineError
from kldcloud.models.engine import Tokens, Vocabulary
from kldcloud.models.gguf_header import read_gguf_header
from kldcloud.models.llama_engine import LlamaOptions, load_model, vocabulary_of
from kldcloud.models.llama_library import llama, recent_complaints
from kldcloud.models.tokenizer import no_chat_template

TEMPLATE_KEY: Final = "tokenizer.chat_template"
_LONGEST_PIECE: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A text as one model's tokenizer sees it.

    Attributes:
        tokens: int32 [n], special tokens added as the vocabulary says.
        vocabulary: of that model.
    """

    tokens: Tokens
    vocabulary: Vocabulary


class LlamaTokenizer:
    """The tokenizer of a model that is loaded; see `open_llama_tokenizer`.

    Attributes:
        vocabulary: what cutting chunks needs to know of it.
    """

    def __init__(self, path: Path, vocab: Any) -> None:  # noqa: ANN401 - a pointer of ctypes
        self._path = path
        self._vocab = vocab
        self.vocabulary = vocabulary_of(vocab)

    @cached_property
    def bos(self) -> str:
        """The text of the BOS token; empty if there is none."""
        return self._piece(llama().llama_vocab_bos(self._vocab))

    @cached_property
    def eos(self) -> str:
        """The text of the EOS token; empty if there is none."""
        return self._piece(llama().llama_vocab_eos(self._vocab))

    def text(self, text: str) -> Tokens:
        """int32 [n]: special tokens added, but not recognised inside: as llama-perplexity does.

        Raises:
            EngineError: if llama.cpp refuses the text.
        """
        return self._tokens(text, special=False)

    def prompt(self, rendered: str) -> Tokens:
        """int32 [n] of what a chat template made: special tokens added and recognised.

        Many templates begin with the BOS that the tokenizer adds as well. As in llama.cpp's server,
        a vocabulary that adds BOS takes one from the beginning of the text first, so that there is
        one and not two; where the vocabulary adds none, there is one if the template wrote it.

        Raises:
            EngineError: if llama.cpp refuses the text.
        """
        if self.vocabulary.add_bos:
            rendered = rendered.removeprefix(self.bos)
        return self._tokens(rendered, special=True)

    def _tokens(self, text: str, *, special: bool) -> Tokens:
        data = text.encode()
        out = np.empty(len(data) + 16, np.int32)
        pointer = out.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        count: int = llama().llama_tokenize(
            self._vocab, data, len(data), pointer, len(out), True, special
        )
        if count < 0:
            raise EngineError(f"{self._path}: llama.cpp could not tokenise the text")
        return out[:count].copy()

    def _piece(self, token: int) -> str:
        # llama.cpp ends the process for a token that the vocabulary has not.
        if not 0 <= token < self.vocabulary.size:
            return ""
        return self._bytes(token).decode(errors="replace")

    def chat_template(self) -> str:
        """The template that renders conversations.

        Raises:
            FormatError: if the file's metadata has none.
        """
        return gguf_chat_template(self._path)

    def texts(self) -> TokenTexts:
        """What every token of the vocabulary stands for."""
        size = self.vocabulary.size
        special = (llama().llama_vocab_is_control(self._vocab, token) for token in range(size))
        return TokenTexts(
            [self._bytes(token) for token in range(size)],
            np.fromiter(special, np.bool_, size),
        )

    @cached_property
    def _buffer(self) -> Any:  # noqa: ANN401 - an array of ctypes
        return ctypes.create_string_buffer(_LONGEST_PIECE)

    def _bytes(self, token: int) -> bytes:
        buffer = self._buffer
        length: int = llama().llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, True)
        if length < 0:
            raise EngineError(f"{self._path}: token {token} has no text")
        return ctypes.string_at(buffer, length)


def gguf_chat_template(path: Path) -> str:
    """The template in a GGUF's metadata, read without llama.cpp.

    Raises:
        FormatError: if it has none.
    """
    template = read_gguf_header(path).metadata.get(TEMPLATE_KEY)
    if not isinstance(template, str) or not template.strip():
        raise no_chat_template(path, f" ({TEMPLATE_KEY})")
    return template


@contextmanager
def open_llama_tokenizer(path: Path) -> Iterator[LlamaTokenizer]:
    """The tokenizer of a GGUF, for as long as it is open.

    Raises:
        EngineError: if llama.cpp refuses the file.
        UserError: for a tokenizer that appends EOS.
    """
    recent_complaints()
    model = load_model(path, LlamaOptions(), vocab_only=True)
    try:
        yield LlamaTokenizer(path, llama().llama_model_get_vocab(model))
    finally:
        llama().llama_model_free(model)


def tokenize(path: Path, text: str) -> TokenizedText:
    """Tokenise one text with a GGUF's vocabulary, as llama-perplexity does.

    Raises:
        EngineError: if llama.cpp refuses the file or the text.
        UserError: for a tokenizer that appends EOS.
    """
    with open_llama_tokenizer(path) as tokenizer:
        return TokenizedText(tokenizer.text(text), tokenizer.vocabulary)
