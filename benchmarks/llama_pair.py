"""A teacher of Llama's shape with random weights, and its Q4_0 file to start a student from.

Every layer has the same weights, so that a file of gigabytes is made in seconds; embedding and head
are one matrix, F16 in both files. There is no tokenizer: training takes tokens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from kldcloud.models.cache import cache_dir
from kldcloud.store.digest import sha256_bytes

RECIPE = 1
"""Raise it with any change to what is written below: cached files are found by it."""

HEAD_WIDTH = 64
LOGIT_NATS = 3.0
"""Standard deviation of a logit."""

Weights = npt.NDArray[np.float32]
Q4_0 = gguf.GGMLQuantizationType.Q4_0


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """The numbers of a model; as Llama 3.2 has them, MLPs are four times as wide as the width.

    Attributes:
        layers: transformer blocks.
        width: d, of the residual stream; a multiple of 64.
        vocabulary: V.
    """

    layers: int
    width: int
    vocabulary: int

    @property
    def heads(self) -> int:
        return self.width // HEAD_WIDTH

    @property
    def kv_heads(self) -> int:
        """A quarter of the heads, where four divides them."""
        return self.heads // 4 if self.heads % 4 == 0 else self.heads

    @property
    def feed_forward(self) -> int:
        return 4 * self.width


@dataclass(frozen=True, slots=True)
class LlamaPair:
    """Both files."""

    teacher: Path
    init: Path


def cached_pair(shape: LlamaShape) -> LlamaPair:
    """The files from the cache, made the first time."""
    facts = json.dumps({"recipe": RECIPE, **asdict(shape)}, sort_keys=True)
    folder = cache_dir() / "benchmarks" / f"llama-{sha256_bytes(facts.encode())[:16]}"
    pair = LlamaPair(folder / "llama-F16.gguf", folder / "llama-Q4_0.gguf")
    if not (pair.teacher.exists() and pair.init.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        embedding, layer = _weights(shape)
        _write(
            shape, embedding, {name: _stored(each) for name, each in layer.items()}, pair.teacher
        )
        quantised = {
            name: gguf.quants.quantize(each, Q4_0) if each.ndim > 1 else each
            for name, each in layer.items()
        }
        _write(shape, embedding, quantised, pair.init)
    return pair


def _weights(shape: LlamaShape) -> tuple[Weights, dict[str, Weights]]:
    random = np.random.Generator(np.random.PCG64(0))
    width, hidden = shape.width, shape.feed_forward
    keys = shape.kv_heads * HEAD_WIDTH

    def matrix(rows: int, columns: int, scale: float = 1.0) -> Weights:
        values = random.standard_normal((rows, columns), np.float32)
        values *= np.float32(scale / columns**0.5)
        return values

    layer = {
        "attn_norm": np.ones(width, np.float32),
        "attn_q": matrix(width, width),
        "attn_k": matrix(keys, width),
        "attn_v": matrix(keys, width),
        "attn_output": matrix(width, width),
        "ffn_norm": np.ones(width, np.float32),
        "ffn_gate": matrix(hidden, width),
        "ffn_up": matrix(hidden, width),
        "ffn_down": matrix(width, hidden),
    }
    return matrix(shape.vocabulary, width, LOGIT_NATS), layer


def _stored(values: Weights) -> npt.NDArray[np.floating]:
    """As converters keep it: ggml computes norms in F32 only."""
    return values if values.ndim == 1 else values.astype(np.float16)


def _write(
    shape: LlamaShape, embedding: Weights, layer: dict[str, npt.NDArray[np.generic]], path: Path
) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_name("llama")
    writer.add_context_length(1 << 17)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(HEAD_WIDTH)
    writer.add_rope_freq_base(500_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, values in _tensors(shape, embedding, layer):
        raw = Q4_0 if values.dtype == np.uint8 else None
        writer.add_tensor(f"{name}.weight", values, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(path)


def _tensors(
    shape: LlamaShape, embedding: Weights, layer: dict[str, npt.NDArray[np.generic]]
) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    yield "token_embd", _stored(embedding)
    yield "output_norm", np.ones(shape.width, np.float32)
    for number in range(shape.layers):
        for name, values in layer.items():
            yield f"blk.{number}.{name}", values
