"""Folders of safetensors with the weights and the vocabulary of a GGUF: the same model twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from kldcloud.qad.torch_model import load_model

_WORD_START = "\u2581"
_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How GPT-2 splits a text (Radford et al., 2019), which llama.cpp's `smollm` does too, after it
has taken digits apart."""


def folder_of(model: Path, folder: Path, *, dtype: str = "float32", max_shard: str = "5GB") -> Path:
    """Write a GGUF's weights and vocabulary as Hugging Face has them.

    Args:
        model: of an architecture that `torch_model.load_model` reads, with a tokenizer of
            SentencePiece's kind or GPT-2's.
        folder: where to, made if missing.
        dtype: of the weights.
        max_shard: bytes of one file, as transformers takes them.
    """
    module = load_model(model, dtype=getattr(torch, dtype))
    module.save_pretrained(folder, max_shard_size=max_shard)
    write_tokenizer(model, folder)
    return folder


def write_tokenizer(model: Path, folder: Path) -> None:
    """The tokenizer alone."""
    reader = gguf.GGUFReader(model)

    def value(name: str, default: Any = None) -> Any:
        field = reader.fields.get(f"tokenizer.{name}")
        return default if field is None else field.contents()

    tokens = value("ggml.tokens")
    kinds = value("ggml.token_type")
    made = (
        _of_sentencepiece(tokens)
        if value("ggml.model") == "llama"
        else _of_bytes(tokens, value("ggml.merges"))
    )
    special = (gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN)
    made.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in special
        ]
    )
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name in ("bos", "eos", "unknown"):
        index = value(f"ggml.{name}_token_id")
        if index is not None:
            settings[f"{name.removesuffix('known')}_token"] = tokens[index]
    if value("ggml.add_bos_token", default=value("ggml.model") == "llama"):
        bos = tokens[value("ggml.bos_token_id")]
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, value("ggml.bos_token_id"))]
        )
    template = value("chat_template")
    if template is not None:
        settings["chat_template"] = template
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _of_sentencepiece(tokens: list[str]) -> Tokenizer:
    """Merges that make the piece of the best score first, which is the one that comes first."""
    rank = {token: index for index, token in enumerate(tokens)}
    merges = [
        (token[:at], token[at:])
        for token in tokens
        for at in range(1, len(token))
        if token[:at] in rank and token[at:] in rank and not token.startswith("<")
    ]
    made = Tokenizer(models.BPE(vocab=rank, merges=merges, unk_token=tokens[0], byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_WORD_START), normalizers.Replace(" ", _WORD_START)]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace(_WORD_START, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return made


def _of_bytes(tokens: list[str], merges: list[str]) -> Tokenizer:
    rank = {token: index for index, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    made = Tokenizer(models.BPE(vocab=rank, merges=pairs))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(_GPT2_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    return made


def damaged(folder: Path, target: Path) -> Path:
    """The same model with two tokens of its vocabulary changed for each other."""
    shutil.copytree(folder, target)
    path = target / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["▁t"], vocabulary["he"] = vocabulary["he"], vocabulary["▁t"]
    path.write_text(json.dumps(content))
    Tokenizer.from_file(str(path))
    return target
