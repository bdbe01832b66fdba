"""Which GGUF files are language models: those that say how probable each next token is.

llama.cpp loads others as well, and then leaves its logits at zero (encoders), or makes them of the
very token that they are to predict (diffusion): a candidate of such a base would seem perfect.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from kldcloud.errors import FormatError
from kldcloud.models.gguf_header import GgufHeader, read_gguf_header

_TEXT_MODEL: Final = "give the GGUF of the language model itself"
_KINDS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "adapter": ("an adapter (LoRA)", "merge it into its model with llama-export-lora first"),
        "mmproj": ("a projector for pictures or sound (mmproj)", _TEXT_MODEL),
        "clip": ("a projector for pictures or sound (mmproj)", _TEXT_MODEL),
        "controlvector": ("a control vector", _TEXT_MODEL),
    }
)
"""What else ``general.type`` or ``general.architecture`` may say, and what to do."""

_EMBEDDINGS: Final = "makes embeddings, and no logits"
_AHEAD: Final = "reads the tokens that it would be asked to predict: its attention is not causal"
_DRAFTS: Final = "drafts tokens for another model, and has no logits of its own"
_ARCHITECTURES: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "bert",
                "eurobert",
                "gemma-embedding",
                "jina-bert-v2",
                "jina-bert-v3",
                "llama-embed",
                "modern-bert",
                "neo-bert",
                "nomic-bert",
                "nomic-bert-moe",
                "t5encoder",
                "wavtokenizer-dec",
            ),
            _EMBEDDINGS,
        ),
        **dict.fromkeys(("dream", "llada", "llada-moe", "rnd1"), _AHEAD),
        **dict.fromkeys(("dflash", "eagle3", "gemma4-assistant"), _DRAFTS),
        "t5": "has an encoder before its decoder, and nothing here feeds it",
    }
)
"""Architectures of llama.cpp that are no language models, and why."""

_DECODERS: Final = "give a model that predicts the next token"


def read_language_model(path: Path) -> GgufHeader:
    """Read the header of a GGUF that must hold a whole language model with its tokenizer.

    Raises:
        UserError: there is no such file, or it cannot be opened.
        FormatError: as `read_gguf_header`; or it holds something else.
    """
    header = read_gguf_header(path)
    check_language_model(path, header)
    return header


def check_language_model(path: Path, header: GgufHeader) -> None:
    """Refuse by name what is not a language model.

    Raises:
        FormatError: it holds something else, only a part, or numbers that contradict each other.
    """
    architecture = header.architecture
    for said in (header.metadata.get("general.type"), architecture):
        if isinstance(said, str) and said in _KINDS:
            what, hint = _KINDS[said]
            raise FormatError(f"{path}: is {what}, not a language model", hint=hint)
    why = _ARCHITECTURES.get(architecture)
    if why is None and header.metadata.get(f"{architecture}.attention.causal") is False:
        why = _AHEAD
    if why is not None:
        raise FormatError(f"{path}: {architecture} {why}", hint=_DECODERS)
    if not header.tensors:
        raise FormatError(f"{path}: has no weights", hint=_TEXT_MODEL)
    if not header.vocabulary_size:
        raise FormatError(
            f"{path}: has no tokenizer (tokenizer.ggml.tokens)",
            hint="convert the model again, with its tokenizer's files beside it",
        )
    if header.metadata.get("tokenizer.ggml.add_eos_token") is True:
        raise FormatError(
            f"{path}: its tokenizer appends an end-of-text token: chunks cannot be cut from it",
            hint="set tokenizer.ggml.add_eos_token to false in the GGUF",
        )
    for name in ("token_embd.weight", "output.weight"):
        tensor = header.tensors.get(name)
        if tensor is not None and tensor.shape[-1] != header.vocabulary_size:
            raise FormatError(
                f"{path}: its {name} has {tensor.shape[-1]:,} rows, its tokenizer "
                f"{header.vocabulary_size:,} tokens",
                hint="convert the model again; llama.cpp loads no such file",
            )
