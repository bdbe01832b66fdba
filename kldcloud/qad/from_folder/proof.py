"""Whether a converted file is its folder: the same tokens of the same texts, the same logits.

Both engines are asked, each by its own means: llama.cpp about the file, transformers about the
folder. Nothing of the conversion is taken on trust.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from unicodedata import normalize

import numpy as np

from kldcloud.corpus.chunks import ChunkShape, Tokens
from kldcloud.divergence.base_rows import LogitRows
from kldcloud.divergence.kernel import token_statistics
from kldcloud.errors import FormatError, UserError
from kldcloud.models.llama_engine import LlamaEngine, LlamaOptions
from kldcloud.models.llama_tokenizer import open_llama_tokenizer
from kldcloud.models.tokenizer import first_difference
from kldcloud.models.transformers_engine import TransformersEngine
from kldcloud.models.transformers_options import TransformersOptions
from kldcloud.models.transformers_tokenizer import TransformersTokenizer
from kldcloud.qad.from_folder.refusals import BY_LLAMA_CPP

COMPOSE: Final = "normalise the text to NFC, as its own tokenizer does first and llama.cpp does not"
CHUNK: Final = 512
"""Tokens that both engines evaluate, where the model was made for so many."""

MOST_NATS: Final[Mapping[str, float]] = {"F32": 1e-6, "F16": 1e-3, "BF16": 1e-2}
"""Mean divergence of llama.cpp from transformers in float32, by the type of the file's weights.

llama.cpp multiplies by F16 and BF16 in those types, so activations are rounded too. SmolLM2-135M
comes to 3e-11, 1e-6 and 8e-5; a larger model rounds more often. A wrong model is tenths away.
"""


def check_tokens(folder: Path, file: Path, texts: Mapping[str, str]) -> Tokens:
    """See that both tokenizers read texts alike.

    Args:
        folder: of safetensors.
        file: the GGUF made of it.
        texts: by what messages call them.

    Returns:
        int32 [n], the first text's tokens.

    Raises:
        FormatError: they do not; the first token that differs is named.
    """
    tokenizer = TransformersTokenizer(folder)
    first: Tokens | None = None
    with open_llama_tokenizer(file) as converted:
        for name, text in texts.items():
            wanted = tokenizer.text(text)
            found = first_difference(wanted, converted.text(text), converted)
            if found is not None:
                composed = normalize("NFC", text)
                alike = np.array_equal(tokenizer.text(composed), converted.text(composed))
                raise FormatError(
                    f"{folder}: llama.cpp reads {name} otherwise than its own tokenizer: token "
                    f"{found.at:,} is {found.other}, and should be {found.one}",
                    hint=COMPOSE if alike else f"take another text, or {BY_LLAMA_CPP}",
                )
            first = wanted if first is None else first
    return np.empty(0, np.int32) if first is None else first


def check_logits(
    folder: Path, file: Path, tokens: Tokens, *, context: int, type_name: str
) -> float:
    """See that both engines predict alike.

    Args:
        folder: of safetensors.
        file: the GGUF made of it.
        tokens: int32 [n] of a text; repeated where they are too few.
        context: tokens that the model was made for.
        type_name: of most of the file's weights.

    Returns:
        The mean KL divergence of the file from the folder, nats.

    Raises:
        FormatError: it is more than rounding comes to.
        UserError: there is no token.
        EngineError: an engine refuses the model.
    """
    if not tokens.size:
        raise UserError("data.text: is empty", hint="give a text to train on")
    chunk = np.resize(tokens, min(CHUNK, context)).astype(np.int32)
    threads = os.cpu_count() or 1
    wanted = _logits_of_folder(folder, chunk, threads)
    exact = LlamaOptions(
        threads=threads, flash_attention="off", kv_type_k="f32", kv_type_v="f32", repack=False
    )
    engine = LlamaEngine(file, len(chunk), exact)
    try:
        found = engine.evaluate(chunk).logits
        following = ChunkShape(len(chunk)).next_tokens(chunk)
        statistics = token_statistics(
            LogitRows(wanted), found, following, threads=threads, llama_compat=False
        )
    finally:
        engine.close()
    kld = float(statistics.kld.mean())
    if not kld <= MOST_NATS[type_name]:
        raise FormatError(
            f"{folder}: llama.cpp computes another model from it: {kld:.2g} nats apart on the "
            f"first {len(chunk)} tokens, and rounding comes to less than {MOST_NATS[type_name]:g}",
            hint=BY_LLAMA_CPP,
        )
    return kld


def _logits_of_folder(
    folder: Path, chunk: Tokens, threads: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    options = TransformersOptions("float32", threads=threads)
    engine = TransformersEngine(folder, len(chunk), options, threads=threads)
    try:
        return engine.evaluate(chunk).logits.copy()
    finally:
        engine.close()
