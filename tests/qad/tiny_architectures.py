"""Tiny GGUFs of the architectures that can be trained, with random weights and real quirks.

Every norm, bias and rotation differs from its neutral value, so that a forgotten one shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from tests.tiny_models import add_tokenizer

VOCABULARY = 320
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
CONTEXT = 128


@dataclass(frozen=True, slots=True)
class TinyShape:
    """Shape and options of a tiny model; 256 wide, so that K-quants fit.

    Attributes:
        architecture: as GGUF names it.
        tied: no output.weight.
        head_width: that of one head; heads x head_width need not be the width, except in qwen2.
        metadata: keys without the architecture's prefix; they replace what is here by default, and
            None removes one.
        rope_divisors: write rope_freqs.weight.
    """

    architecture: str
    tied: bool = False
    width: int = 256
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    head_width: int = 64
    feed_forward: int = 512
    metadata: Mapping[str, Any] = field(default_factory=dict)
    rope_divisors: tuple[float, ...] | None = None


def tiny_tensors(shape: TinyShape, seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """Weights by GGUF name, in numpy's order."""
    rng = np.random.default_rng(seed)
    d, q, k = shape.width, shape.heads * shape.head_width, shape.kv_heads * shape.head_width

    def matrix(rows: int, columns: int, gain: float = 1.0) -> npt.NDArray[np.float32]:
        scale = gain / np.sqrt(columns)
        return (rng.standard_normal((rows, columns)) * scale).astype(np.float32)

    def norm(size: int) -> npt.NDArray[np.float32]:
        return rng.uniform(0.5, 1.5, size).astype(np.float32)

    # Either way logits spread by about 2: a peaked softmax would hide differences.
    embedding = matrix(VOCABULARY, d, 2.0 if shape.tied else np.sqrt(d))
    tensors = {"token_embd.weight": embedding, "output_norm.weight": norm(d)}
    if not shape.tied:
        tensors["output.weight"] = matrix(VOCABULARY, d, 2.0)
    for layer in range(shape.layers):
        block = {
            "attn_norm.weight": norm(d),
            "attn_q.weight": matrix(q, d, 1.5),
            "attn_k.weight": matrix(k, d, 1.5),
            "attn_v.weight": matrix(k, d),
            "attn_output.weight": matrix(d, q),
            "ffn_norm.weight": norm(d),
            "ffn_gate.weight": matrix(shape.feed_forward, d),
            "ffn_up.weight": matrix(shape.feed_forward, d),
            "ffn_down.weight": matrix(d, shape.feed_forward),
        }
        if shape.architecture == "qwen2":
            for name, size in (("q", q), ("k", k), ("v", k)):
                block[f"attn_{name}.bias"] = rng.standard_normal(size).astype(np.float32)
        if shape.architecture in {"qwen3", "gemma3"}:
            block["attn_q_norm.weight"] = norm(shape.head_width)
            block["attn_k_norm.weight"] = norm(shape.head_width)
        if shape.architecture == "gemma3":
            block["post_attention_norm.weight"] = norm(d)
            block["post_ffw_norm.weight"] = norm(d)
        tensors |= {f"blk.{layer}.{name}": tensor for name, tensor in block.items()}
    if shape.rope_divisors is not None:
        tensors["rope_freqs.weight"] = np.array(shape.rope_divisors, np.float32)
    return tensors


def tiny_model(
    path: Path,
    shape: TinyShape,
    *,
    seed: int = 0,
    tensors: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> Path:
    """Write one model, F32, with a tokenizer that adds no BOS.

    Args:
        path: of the file.
        shape: what to write.
        seed: of the weights.
        tensors: instead of `tiny_tensors`; 2-D arrays of another dtype than float32 stay so.

    Returns:
        `path`.
    """
    writer = gguf.GGUFWriter(path, shape.architecture)
    # transformers takes a model's class from this name where it is not written.
    writer.add_name("tiny")
    metadata: dict[str, Any] = {
        "context_length": 4096,
        "embedding_length": shape.width,
        "block_count": shape.layers,
        "feed_forward_length": shape.feed_forward,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_width,
        "attention.value_length": shape.head_width,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 50_000.0,
        "rope.dimension_count": shape.head_width,
        **shape.metadata,
    }
    for name, value in metadata.items():
        add_value(writer, f"{shape.architecture}.{name}", value)
    add_tokenizer(writer, VOCABULARY, bos=False)
    for name, tensor in (tensors or tiny_tensors(shape, seed)).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add a value under the type that converters give it; None adds nothing."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)
