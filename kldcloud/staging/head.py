"""The output head of the base model: from GGUF, into a stage, and back into logits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kldcloud.models.gguf_header import GgufHeader, TensorInfo, read_tensor_bytes
from kldcloud.staging.states import SUPPORTED_HEADS, bytes_per_state, from_bf16, from_q8_0

F4 = npt.NDArray[np.float32]

TILE = 4096
"""Vocabulary columns a product: the widened head tile stays in cache, logits never wait for it."""

ARCHITECTURES = frozenset(
    {
        "afmoe",
        "apertus",
        "arcee",
        "bailingmoe",
        "bailingmoe2",
        "bitnet",
        "bloom",
        "dbrx",
        "deci",
        "deepseek",
        "deepseek2",
        "dots1",
        "ernie4_5",
        "ernie4_5-moe",
        "exaone",
        "exaone-moe",
        "exaone4",
        "falcon",
        "falcon-h1",
        "gemma",
        "gemma3",
        "glm-dsa",
        "glm4",
        "glm4moe",
        "gpt-oss",
        "gpt2",
        "gptneox",
        "hunyuan-dense",
        "hunyuan-moe",
        "internlm2",
        "jamba",
        "kimi-linear",
        "lfm2",
        "lfm2moe",
        "llama",
        "llama4",
        "mamba",
        "mamba2",
        "mimo2",
        "minimax-m2",
        "mistral3",
        "mistral4",
        "nemotron",
        "nemotron_h",
        "nemotron_h_moe",
        "olmo",
        "olmo2",
        "olmoe",
        "phi3",
        "qwen2",
        "qwen2moe",
        "qwen2vl",
        "qwen3",
        "qwen35",
        "qwen35moe",
        "qwen3moe",
        "qwen3next",
        "qwen3vl",
        "qwen3vlmoe",
        "rwkv6",
        "seed_oss",
        "smallthinker",
        "smollm3",
        "stablelm",
        "starcoder",
        "starcoder2",
        "step35",
    }
)
"""Architectures whose logits are the head's product with the normed states and nothing more.

Random models of all of them were evaluated by llama.cpp 0.3.36: its logits were the product's to
1e-10 nats. Left out on purpose: soft-capped logits (gemma2, gemma3n, gemma4, grok), scaled ones
(command-r, granite, minicpm), heads that always have a bias (phi2). Each stage is also checked
against the engine.
"""


@dataclass(frozen=True, slots=True)
class AfterHead:
    """What some models do to the head's product: logit = cap * tanh(scale * product / cap).

    Attributes:
        scale: 1 for most.
        softcap: the cap; None for none.
    """

    scale: float = 1.0
    softcap: float | None = None

    def apply(self, products: F4) -> None:
        """Turn products into logits, in place."""
        if self.scale != 1:
            products *= np.float32(self.scale)
        if self.softcap is not None:
            products /= np.float32(self.softcap)
            np.tanh(products, out=products)
            products *= np.float32(self.softcap)


NOTHING_AFTER = AfterHead()
"""The product is the logit."""


@dataclass(frozen=True, slots=True)
class OutputHead:
    """The matrix that turns states into logits, and what is done to its product.

    Attributes:
        data: uint8, V rows of `width` elements, as the model's file stores them.
        type_name: their ggml type; one of `SUPPORTED_HEADS`.
        width: d.
        vocabulary: V.
        bias: float32 [V], added to the product; None for none.
        after: what follows that.
    """

    data: npt.NDArray[np.uint8]
    type_name: str
    width: int
    vocabulary: int
    bias: F4 | None = None
    after: AfterHead = NOTHING_AFTER

    def logits(self, states: F4, *, out: F4, threads: int = 1) -> None:
        """States [rows, d] times the head, into out [rows, V]; float32.

        Columns are computed in fixed tiles, each by one thread, so that the result does not depend
        on how many threads there are.
        """

        def tile(start: int) -> None:
            stop = min(start + TILE, self.vocabulary)
            part = out[:, start:stop]
            np.matmul(states, self.widened(start, stop).T, out=part)
            if self.bias is not None:
                part += self.bias[start:stop]
            self.after.apply(part)

        starts = range(0, self.vocabulary, TILE)
        with single_threaded_blas():
            if threads <= 1:
                for start in starts:
                    tile(start)
                return
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(tile, starts):
                    pass

    def widened(self, start: int, stop: int) -> F4:
        """Rows `start` to `stop` as float32 [rows, d]."""
        row = bytes_per_state(self.type_name, self.width)
        raw = self.data[start * row : stop * row]
        if self.type_name == "F32":
            flat = raw.view("<f4")
        elif self.type_name == "F16":
            flat = raw.view("<f2").astype(np.float32)
        elif self.type_name == "BF16":
            flat = from_bf16(raw.view("<u2"))
        else:
            flat = from_q8_0(raw)
        return flat.reshape(stop - start, self.width)


def single_threaded_blas() -> AbstractContextManager[object]:
    """A context in which numpy's products run on the calling thread only."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(limits=1, user_api="blas")
    return limits


def head_tensor(header: GgufHeader) -> TensorInfo | None:
    """The output head's entry: its own tensor, or the embeddings where they are tied."""
    return header.tensors.get("output.weight") or header.tensors.get("token_embd.weight")


def why_not_hidden(header: GgufHeader) -> str | None:
    """Why hidden states cannot stand for this model's logits, or None if they can."""
    if header.architecture not in ARCHITECTURES:
        return f"architecture {header.architecture} may change logits after the head"
    if "output.bias" in header.tensors:
        return "its output head has a bias"
    for key in ("final_logit_softcapping", "logit_scale"):
        if f"{header.architecture}.{key}" in header.metadata:
            return f"its logits are changed after the head ({key})"
    tensor = head_tensor(header)
    if tensor is None or tensor.shape[1:] != (header.vocabulary_size,):
        return f"it has no output head that fits its {header.vocabulary_size:,} tokens"
    if tensor.type_name not in SUPPORTED_HEADS:
        return f"its head is {tensor.type_name}, whose activation rounding is not reproduced"
    return None


def read_head(path: Path, header: GgufHeader) -> OutputHead:
    """The head of a GGUF for which `why_not_hidden` is None; mapped, not copied."""
    tensor = head_tensor(header)
    if tensor is None:
        raise KeyError("output.weight")
    width, vocabulary = tensor.shape
    data = np.frombuffer(read_tensor_bytes(path, tensor), np.uint8)
    return OutputHead(data, tensor.type_name, width, vocabulary)
