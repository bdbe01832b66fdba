"""A llama model of a large vocabulary and a small width, and a text of as many tokens as wanted.

The vocabulary is one of words: whatever begins one is a word as well, and no piece lies inside
another but at its start, so a SentencePiece tokenizer takes each word of a text for one token. The
words of a text are drawn as often as Zipf's law has them; the model's output head knows that law by
a constant channel of the residual stream, so that the distributions have a head and a tail over
some 20 nats, as those of real models.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice, product
from pathlib import Path
from string import ascii_lowercase

import gguf
import numpy as np
import numpy.typing as npt

from kldcloud.models.cache import cache_dir
from kldcloud.store.digest import sha256_bytes

RECIPE = 2
"""Raise it with any change to what is written below: cached files are found by it."""

SPACE = "▁"
CONTROL = ("<unk>", "<s>", "</s>")
FIXED = (*CONTROL, *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, *ascii_lowercase)
ZIPF_OFFSET = 2.7
CONSTANT_CHANNEL = 4.0
LOGIT_NATS = 4.5
"""Standard deviation of what a context adds to a logit: with it, 81 % of a row's entries are more
than 16 nats below the largest, as 74 to 97 % are with real models. Some statistics skip those."""

Weights = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class WideModel:
    """What a model and its text are made from.

    Attributes:
        vocabulary: V, all tokens.
        width: d, of the hidden states.
        layers: transformer blocks.
        tokens: of the text.
        seed: of weights and text.
    """

    vocabulary: int
    width: int
    layers: int
    tokens: int
    seed: int = 0

    @property
    def heads(self) -> int:
        return max(1, self.width // 64)

    @property
    def feed_forward(self) -> int:
        return 2 * self.width


@dataclass(frozen=True, slots=True)
class ModelAndText:
    """The files: a GGUF of F16 weights, and UTF-8 text."""

    model: Path
    text: Path


def cached_files(wanted: WideModel) -> ModelAndText:
    """The files from the cache, made the first time (some seconds)."""
    facts = json.dumps({"recipe": RECIPE, **asdict(wanted)}, sort_keys=True)
    folder = cache_dir() / "benchmarks" / f"wide-{sha256_bytes(facts.encode())[:16]}"
    files = ModelAndText(folder / "wide-F16.gguf", folder / "text.txt")
    folder.mkdir(parents=True, exist_ok=True)
    for path, write in ((files.text, _write_text), (files.model, _write_model)):
        if not path.exists():
            part = path.with_name(f".{path.name}.{os.getpid()}")
            write(wanted, part)
            part.replace(path)
    return files


def words(count: int) -> list[str]:
    """The first `count` words by length and alphabet: every prefix of one is in front of it."""
    every = (product(ascii_lowercase, repeat=size) for size in range(1, 6))
    return ["".join(letters) for letters in islice(_joined(every), count)]


def _joined(groups: Iterator[Iterator[tuple[str, ...]]]) -> Iterator[tuple[str, ...]]:
    for group in groups:
        yield from group


def _log_frequencies(count: int) -> npt.NDArray[np.float64]:
    weights = 1.0 / (np.arange(count) + ZIPF_OFFSET)
    return np.log(weights / weights.sum())


def _write_text(wanted: WideModel, path: Path) -> None:
    vocabulary = words(wanted.vocabulary - len(FIXED))
    random = np.random.Generator(np.random.PCG64([wanted.seed, 1]))
    chances = np.exp(_log_frequencies(len(vocabulary)))
    drawn = random.choice(len(vocabulary), size=wanted.tokens, p=chances)
    path.write_text(" ".join(vocabulary[index] for index in drawn), encoding="utf-8")


def _write_model(wanted: WideModel, path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("wide")
    writer.add_context_length(4096)
    writer.add_embedding_length(wanted.width)
    writer.add_block_count(wanted.layers)
    writer.add_feed_forward_length(wanted.feed_forward)
    writer.add_head_count(wanted.heads)
    writer.add_rope_dimension_count(wanted.width // wanted.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(wanted.vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_tokenizer(writer, wanted.vocabulary)
    for name, weight in _weights(wanted).items():
        # ggml computes norms in F32 only.
        stored = np.float32 if weight.ndim == 1 else np.float16
        writer.add_tensor(f"{name}.weight", weight.astype(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    pieces = [*FIXED, *(SPACE + word for word in words(vocabulary - len(FIXED)))]
    kinds = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * (len(CONTROL) - 1)
    kinds += [gguf.TokenType.BYTE] * 256
    kinds += [gguf.TokenType.NORMAL] * (vocabulary - len(kinds))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(index) for index in range(vocabulary)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(value=False)
    writer.add_add_eos_token(value=False)


def _weights(wanted: WideModel) -> Mapping[str, Weights]:
    random = np.random.Generator(np.random.PCG64([wanted.seed, 0]))
    width, hidden, vocabulary = wanted.width, wanted.feed_forward, wanted.vocabulary

    def matrix(rows: int, columns: int, scale: float) -> Weights:
        return random.standard_normal((rows, columns), np.float32) * np.float32(scale)

    embedding = matrix(vocabulary, width, 1.0)
    head = matrix(vocabulary, width, LOGIT_NATS / width**0.5)
    embedding[:, 0] = CONSTANT_CHANNEL
    # Nobody writes control or byte tokens: they lie below every word.
    frequencies = _log_frequencies(vocabulary - len(FIXED))
    head[: len(FIXED), 0] = (frequencies[-1] - 1.0) / CONSTANT_CHANNEL
    head[len(FIXED) :, 0] = frequencies / CONSTANT_CHANNEL
    weights = {"token_embd": embedding, "output": head, "output_norm": np.ones(width, np.float32)}
    spread = 1.0 / width**0.5
    for layer in range(wanted.layers):
        block = f"blk.{layer}."
        weights[block + "attn_norm"] = np.ones(width, np.float32)
        weights[block + "ffn_norm"] = np.ones(width, np.float32)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights[block + name] = matrix(width, width, spread)
        weights[block + "ffn_gate"] = matrix(hidden, width, spread)
        weights[block + "ffn_up"] = matrix(hidden, width, spread)
        weights[block + "ffn_down"] = matrix(width, hidden, spread / 2)
    return weights
