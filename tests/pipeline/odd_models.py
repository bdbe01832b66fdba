"""Models that differ from a tiny pair in one way that makes a sweep of them fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from kldcloud.models.gguf_header import read_gguf_header
from tests import tiny_models


def with_bytes(
    source: Path, target: Path, tensor: str, change: Callable[[bytearray], None]
) -> Path:
    """A copy of a model with one tensor's bytes changed in place."""
    info = read_gguf_header(source).tensors[tensor]
    data = bytearray(source.read_bytes())
    part = data[info.offset : info.offset + info.nbytes]
    change(part)
    data[info.offset : info.offset + info.nbytes] = part
    target.write_bytes(data)
    return target


def with_nan(source: Path, target: Path) -> Path:
    """A copy whose first output norm is NaN, and with it every logit."""

    def change(part: bytearray) -> None:
        part[:4] = np.array([np.nan], "<f4").tobytes()

    return with_bytes(source, target, "output_norm.weight", change)


def hungry(target: Path, vocabulary: int, width: int) -> Path:
    """A model of 1 KB a unit of `width`, whose cache takes 16 bytes a unit and token (as F32)."""
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_name("hungry")
    writer.add_context_length(tiny_models.CONTEXT)
    writer.add_embedding_length(tiny_models.WIDTH)
    writer.add_block_count(tiny_models.LAYERS)
    writer.add_feed_forward_length(tiny_models.FEED_FORWARD)
    writer.add_head_count(width // 128)
    writer.add_key_length(128)
    writer.add_value_length(128)
    writer.add_rope_dimension_count(128)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    tiny_models.add_tokenizer(writer, vocabulary, bos=True)
    for name, weight in _hungry_weights(vocabulary, width).items():
        writer.add_tensor(name + ".weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _hungry_weights(vocabulary: int, width: int) -> dict[str, npt.NDArray[np.floating]]:
    rng = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> npt.NDArray[np.float16]:
        return (0.01 * rng.standard_normal((rows, columns), np.float32)).astype(np.float16)

    weights: dict[str, npt.NDArray[np.floating]] = {}
    for name, weight in tiny_models._weights(vocabulary, seed=0).items():
        if name.endswith(("attn_q", "attn_k", "attn_v")):
            weights[name] = matrix(width, tiny_models.WIDTH)
        elif name.endswith("attn_output"):
            weights[name] = matrix(tiny_models.WIDTH, width)
        else:
            weights[name] = weight.astype(np.float32)
    return weights
