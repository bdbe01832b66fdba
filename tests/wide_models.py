"""Models that every quantisation type of llama.cpp can be made of."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def wide_model(path: Path, *, layers: int) -> Path:
    """A llama model of random F32 weights, without a vocabulary.

    It is wide enough that no type falls back to another, and with 8 layers as deep as it takes
    for the first of them to be treated apart.
    """
    width, inner, vocabulary = 256, 512, 64
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    shapes = {"token_embd": (vocabulary, width), "output": (vocabulary, width)}
    shapes["output_norm"] = (width,)
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{layer}.{name}"] = (width, width)
        shapes[f"blk.{layer}.ffn_gate"] = shapes[f"blk.{layer}.ffn_up"] = (inner, width)
        shapes[f"blk.{layer}.ffn_down"] = (width, inner)
        shapes[f"blk.{layer}.attn_norm"] = shapes[f"blk.{layer}.ffn_norm"] = (width,)
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
