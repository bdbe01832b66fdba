"""A llama layer by layer in float64: what enters each weight matrix, dense or of experts.

Written from the architecture's own formulas (arXiv:2302.13971, and arXiv:2401.04088 for experts),
not from llama.cpp.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from tests import tiny_models

Float64 = npt.NDArray[np.float64]
Rows = dict[str, Float64]

EXPERTS = 4
USED = 2
EPSILON = 1e-5
ROPE_BASE = 10000.0


def tiny_moe(path: Path, *, vocabulary: int = 320, bos: bool = True) -> Path:
    """A tiny model of F32 weights whose feed-forwards are 4 experts, 2 of them for each token.

    Nothing is ever sent to the last expert.
    """
    width, inner = tiny_models.WIDTH, tiny_models.FEED_FORWARD
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(tiny_models.CONTEXT)
    writer.add_embedding_length(width)
    writer.add_block_count(tiny_models.LAYERS)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(tiny_models.HEADS)
    writer.add_rope_dimension_count(width // tiny_models.HEADS)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_vocab_size(vocabulary)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(USED)
    tiny_models.add_tokenizer(writer, vocabulary, bos=bos)
    for name, weight in tiny_models._weights(vocabulary, seed=0).items():
        part = name.rpartition(".")[2]
        if part in {"ffn_gate", "ffn_up", "ffn_down"}:
            stacked = np.stack([np.roll(weight, each, axis=1) for each in range(EXPERTS)])
            writer.add_tensor(f"{name}_exps.weight", stacked.astype(np.float32))
            continue
        writer.add_tensor(f"{name}.weight", weight.astype(np.float32))
        if part == "ffn_norm":
            router = tiny_models._normal((5, int(name.split(".")[1])), (EXPERTS, width)) / 4
            router[-1] = 0.0
            router[-1, 0] = -9.0  # it reads the constant channel
            writer.add_tensor(f"{name[:-4]}gate_inp.weight", router.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def layer_inputs(path: Path, tokens: npt.NDArray[np.int32]) -> dict[str, list[Float64]]:
    """What enters each weight matrix of the layers when one chunk is evaluated.

    Args:
        path: a GGUF of F32 weights, made here or by `tiny_models`.
        tokens: int32 [n], the BOS rule applied.

    Returns:
        By tensor name: float64 [rows, columns] for each matrix that is stacked in it.
    """
    weights = {
        tensor.name.removesuffix(".weight"): np.asarray(tensor.data, np.float64)
        for tensor in gguf.GGUFReader(path).tensors
    }
    seen: dict[str, list[Float64]] = defaultdict(list)

    def product(name: str, x: Float64) -> Float64:
        seen[f"{name}.weight"].append(x)
        return x @ weights[name].T

    x = weights["token_embd"][tokens]
    for layer in range(tiny_models.LAYERS):
        at = f"blk.{layer}."
        y = _norm(x) * weights[at + "attn_norm"]
        q, k, v = (_heads(product(f"{at}attn_{which}", y)) for which in "qkv")
        x = x + product(f"{at}attn_output", _attention(_rope(q), _rope(k), v))
        y = _norm(x) * weights[at + "ffn_norm"]
        if f"{at}ffn_gate_inp" not in weights:
            inside = _silu(product(f"{at}ffn_gate", y)) * product(f"{at}ffn_up", y)
            x = x + product(f"{at}ffn_down", inside)
            continue
        odds = np.exp(product(f"{at}ffn_gate_inp", y))
        best = np.argsort(-odds, axis=1)[:, :USED]
        shares = np.take_along_axis(odds, best, 1)
        shares /= shares.sum(axis=1, keepdims=True)
        out = np.zeros_like(x)
        for expert in range(EXPERTS):
            row, place = np.nonzero(best == expert)
            gate, up, down = (weights[f"{at}ffn_{each}_exps"][expert] for each in _PARTS)
            inside = _silu(y[row] @ gate.T) * (y[row] @ up.T)
            for part, into in zip(_PARTS, (y[row], y[row], inside), strict=True):
                seen[f"{at}ffn_{part}_exps.weight"].append(into)
            out[row] += shares[row, place][:, None] * (inside @ down.T)
        x = x + out
    return seen


_PARTS = ("gate", "up", "down")


def _norm(x: Float64) -> Float64:
    scaled: Float64 = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPSILON)
    return scaled


def _silu(x: Float64) -> Float64:
    return x / (1 + np.exp(-x))


def _heads(x: Float64) -> Float64:
    """[n, width] as [heads, n, width of one]."""
    return x.reshape(len(x), tiny_models.HEADS, -1).transpose(1, 0, 2)


def _rope(x: Float64) -> Float64:
    """Turn neighbouring channels by the position, as a GGUF of this architecture has them."""
    _, n, width = x.shape
    angles = np.outer(np.arange(n), ROPE_BASE ** (-np.arange(0, width, 2) / width))
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


def _attention(q: Float64, k: Float64, v: Float64) -> Float64:
    heads, n, width = q.shape
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(width)
    scores[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    mixed: Float64 = (shares @ v).transpose(1, 0, 2).reshape(n, heads * width)
    return mixed
