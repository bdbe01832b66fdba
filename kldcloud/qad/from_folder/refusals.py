"""How a folder is refused that has no GGUF here, or whose GGUF would be another model."""

from __future__ import annotations

from typing import Final

from kldcloud.errors import FormatError

BY_LLAMA_CPP: Final = (
    "convert it with llama.cpp's convert_hf_to_gguf.py, and give that GGUF as the teacher"
)
PLAIN_MODEL: Final = "use a plain dense model of llama, qwen2, qwen3 or gemma3, unquantised"


def refused_tokenizer(place: object, what: str) -> FormatError:
    """The error for a tokenizer that is not known here."""
    return FormatError(f"{place}: {what}", hint=BY_LLAMA_CPP)


def refused_model(place: object, what: str) -> FormatError:
    """The error for a model that is not computed here."""
    return FormatError(f"{place}: {what}", hint=PLAIN_MODEL)
