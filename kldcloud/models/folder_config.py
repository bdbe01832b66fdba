"""The config.json of a model folder: the few facts that are used of it, each of the right kind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kldcloud.errors import FormatError
from kldcloud.models.bounded_json import read_json_object
from kldcloud.models.regular_file import DOWNLOAD_AGAIN

_MAX_BYTES = 8 << 20  # lists of what is not quantised reach a megabyte
_MAX_VALUES = 1 << 18
_MAX_VOCABULARY = 1 << 24
_MAX_WIDTH = 1 << 20
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_WIDTHS: Final = ("hidden_size", "n_embd", "d_model", "dim")
_ANOTHER = "give the folder of a language model"


@dataclass(frozen=True, slots=True)
class FolderConfig:
    """What a configuration says; attributes as of `model_folder.ModelFolder`.

    Attributes:
        values: all of it.
        vocabulary_sizes: of the language model, then of the whole where that differs; may be empty.
        hidden_size: of the language model, or None.
    """

    values: Mapping[str, Any]
    architecture: str
    model_type: str
    vocabulary_sizes: tuple[int, ...]
    hidden_size: int | None
    tied_embeddings: bool | None
    dtype: str | None
    quantization: str | None


def read_folder_config(path: Path) -> FolderConfig:
    """Read a config.json.

    Raises:
        UserError: it cannot be read.
        FormatError: it is no configuration of a language model, or what is used of it is of
            another kind than it should be.
    """
    values = read_json_object(path, max_bytes=_MAX_BYTES, max_values=_MAX_VALUES)
    inner = values.get("text_config")
    if inner is not None and not isinstance(inner, dict):
        raise FormatError(f"{path}: text_config is no object", hint=DOWNLOAD_AGAIN)
    if "transformers_weights" in values:
        raise FormatError(
            f"{path}: names other weights (transformers_weights), which is not followed",
            hint="take the key out, and name the weights as save_pretrained does",
        )
    facts = _Facts(path, values, inner or {})
    return FolderConfig(
        values=values,
        architecture=facts.architecture(),
        model_type=facts.needed_word(values.get("model_type"), "model_type"),
        vocabulary_sizes=facts.sizes(("vocab_size",), _MAX_VOCABULARY),
        hidden_size=next(iter(facts.sizes(_WIDTHS, _MAX_WIDTH)), None),
        tied_embeddings=facts.tied_embeddings(),
        dtype=facts.dtype(),
        quantization=facts.quantization(),
    )


def of_language_model(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A configuration as its language model has it: its own part before that of the whole."""
    inner = values.get("text_config")
    return {**values, **(inner if isinstance(inner, dict) else {})}


def quantization_settings(values: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a configuration says of how its weights are quantised; None if they are not.

    Empty where it says something, and no mapping.
    """
    inner = values.get("text_config") or {}
    found = values.get("quantization_config", inner.get("quantization_config"))
    if found is None:
        return None
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True, slots=True)
class _Facts:
    """A configuration, and the part of it that is the language model's where there are others."""

    path: Path
    outer: Mapping[str, Any]
    inner: Mapping[str, Any]

    def architecture(self) -> str:
        found = self.outer.get("architectures")
        first = found[0] if isinstance(found, list) and found else None
        return self.needed_word(first, "architecture")

    def needed_word(self, found: object, what: str) -> str:
        if not isinstance(found, str) or not _WORD.fullmatch(found):
            raise FormatError(f"{self.path}: names no {what}", hint=_ANOTHER)
        return found

    def sizes(self, keys: tuple[str, ...], most: int) -> tuple[int, ...]:
        """The inner one, then the outer one where it is another."""
        found = [
            values[key]
            for values in (self.inner, self.outer)
            for key in keys
            if values.get(key) is not None
        ]
        for size in found:
            if type(size) is not int or not 1 <= size <= most:
                raise FormatError(f"{self.path}: has an impossible {keys[0]}", hint=DOWNLOAD_AGAIN)
        return tuple(dict.fromkeys(found))

    def tied_embeddings(self) -> bool | None:
        # The outer one decides, as it does in transformers.
        for values in (self.outer, self.inner):
            found = values.get("tie_word_embeddings")
            if isinstance(found, bool):
                return found
            if found is not None:
                raise FormatError(
                    f"{self.path}: tie_word_embeddings is neither true nor false",
                    hint=DOWNLOAD_AGAIN,
                )
        return None

    def dtype(self) -> str | None:
        for values in (self.inner, self.outer):
            for key in ("dtype", "torch_dtype"):
                if values.get(key) is not None:
                    return self.needed_word(values[key], key)
        return None

    def quantization(self) -> str | None:
        found = quantization_settings(self.outer)
        if found is None:
            return None
        method = found.get("quant_method")
        if not isinstance(method, str) or not _WORD.fullmatch(method):
            raise FormatError(
                f"{self.path}: quantization_config names no quant_method", hint=DOWNLOAD_AGAIN
            )
        return method
