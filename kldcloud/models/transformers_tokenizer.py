"""A folder's tokenizer at work, cutting texts as llama.cpp cuts them with the same vocabulary."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from kldcloud.corpus.token_texts import TokenTexts
from kldcloud.errors import EngineError, FormatError, UserError
from kldcloud.models.engine import Tokens, Vocabulary
from kldcloud.models.model_folder import ModelFolder, read_model_folder
from kldcloud.models.token_bytes import token_bytes
from kldcloud.models.tokenizer import no_chat_template
from kldcloud.models.transformers_library import transformers
from kldcloud.models.transformers_load import folder_config, in_a_line

_PROBE: Final = "a"
_NAMED: Final = ("bos", "eos", "unk", "pad")


class TransformersTokenizer:
    """The tokenizer of a folder.

    Attributes:
        vocabulary: what cutting chunks needs to know of it.

    Raises:
        FormatError: it is none, or lacks a special token that it says it adds.
        UserError: for a tokenizer that appends EOS.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = read_model_folder(path)
        self._tokenizer = _load(self._folder)
        self.vocabulary = _vocabulary(self._folder, self._tokenizer)

    @cached_property
    def bos(self) -> str:
        """The text of the BOS token; empty if there is none."""
        return str(self._tokenizer.bos_token or "")

    @cached_property
    def eos(self) -> str:
        """The text of the EOS token; empty if there is none."""
        return str(self._tokenizer.eos_token or "")

    def text(self, text: str) -> Tokens:
        """int32 [n]: special tokens added, but not recognised inside: as llama-perplexity does.

        Raises:
            EngineError: if the tokenizer refuses the text.
        """
        return self._tokens(text, special=False)

    def prompt(self, rendered: str) -> Tokens:
        """int32 [n] of what a chat template made: special tokens added and recognised.

        Where the tokenizer adds BOS, one at the beginning of the text is taken off first.

        Raises:
            EngineError: if the tokenizer refuses the text.
        """
        if self.vocabulary.add_bos:
            rendered = rendered.removeprefix(self.bos)
        return self._tokens(rendered, special=True)

    def texts(self) -> TokenTexts:
        """What every token of the vocabulary stands for."""
        pieces, special = token_bytes(self._tokenizer, self.vocabulary.size)
        return TokenTexts(pieces, special)

    def special_tokens(self) -> dict[str, int]:
        """Numbers of the tokens that it names bos, eos, unk and pad; without those it has not."""
        named = {name: getattr(self._tokenizer, f"{name}_token_id") for name in _NAMED}
        size = self.vocabulary.size
        return {
            name: number
            for name, number in named.items()
            if type(number) is int and 0 <= number < size
        }

    def chat_template(self) -> str:
        """The template that renders conversations; where it has several by name, the default.

        Raises:
            FormatError: if there is none.
        """
        template = self._tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if not isinstance(template, str) or not template.strip():
            raise no_chat_template(self._path)
        return template

    def _tokens(self, text: str, *, special: bool) -> Tokens:
        try:
            ids = self._tokenizer(
                text,
                add_special_tokens=True,
                split_special_tokens=not special,
                verbose=False,
                return_attention_mask=False,
            )["input_ids"]
        except Exception as error:
            raise EngineError(
                f"{self._path}: its tokenizer could not read the text: {error}"
            ) from error
        found = np.array(ids, np.int64)
        if found.size and not (found.min() >= 0 and found.max() < self.vocabulary.size):
            raise FormatError(
                f"{self._path}: its tokenizer makes token {found.max()}, and the model has "
                f"{self.vocabulary.size:,}",
                hint="the tokenizer files are another model's",
            )
        return found.astype(np.int32)


def folder_vocabulary(folder: ModelFolder) -> Vocabulary:
    """The facts of a folder's tokenizer; errors as of `TransformersTokenizer`."""
    return _vocabulary(folder, _load(folder))


def _load(folder: ModelFolder) -> Any:  # noqa: ANN401 - untyped package
    try:
        return transformers().AutoTokenizer.from_pretrained(
            str(folder.path), trust_remote_code=False, local_files_only=True
        )
    except UserError:
        raise
    except Exception as error:
        # It reads the config.json as well: an error there is none of the tokenizer's.
        folder_config(folder)
        raise FormatError(
            f"{folder.path}: transformers could not load its tokenizer: {in_a_line(error)}",
            hint="the folder needs tokenizer.json, or the files that one is made from",
        ) from error


def _vocabulary(folder: ModelFolder, tokenizer: Any) -> Vocabulary:  # noqa: ANN401
    plain = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    added = tokenizer(_PROBE, add_special_tokens=True)["input_ids"]
    if len(plain) == len(added):
        return Vocabulary(folder.vocabulary_size, add_bos=False, bos=-1)
    put = added[: len(added) - len(plain)]
    if added[len(put) :] != plain:
        raise UserError(
            f"{folder.path}: its tokenizer appends an end-of-text token: chunks cannot be cut "
            "from it",
            hint="set add_eos_token to false in tokenizer_config.json",
        )
    bos = tokenizer.bos_token_id
    if bos is None or put != [bos]:
        begins = "".join(map(str, tokenizer.convert_ids_to_tokens(put)))
        names = "no BOS token" if bos is None else f"{str(tokenizer.bos_token)[:80]!r} as BOS"
        raise FormatError(
            f"{folder.path}: its tokenizer begins a text with {begins[:80]!r}, and its "
            f"tokenizer_config.json names {names}",
            hint="correct bos_token there",
        )
    return Vocabulary(folder.vocabulary_size, add_bos=True, bos=int(bos))
