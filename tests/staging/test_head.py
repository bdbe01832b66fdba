"""The output head: from a GGUF's bytes back to the logits that llama.cpp computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from kldcloud.models.gguf_header import ArrayInfo, GgufHeader, TensorInfo, read_gguf_header
from kldcloud.models.llama_engine import LlamaEngine, LlamaOptions
from kldcloud.staging.head import TILE, OutputHead, head_tensor, read_head, why_not_hidden
from kldcloud.staging.states import SUPPORTED_HEADS
from tests.rewritten import rewritten
from tests.tiny_models import tiny_pair

WIDTH = 64


def weights(vocabulary: int, head_type: str) -> tuple[OutputHead, np.ndarray]:
    """A head of that type, and its weights as gguf's own code widens them."""
    plain = np.random.default_rng(0).normal(size=(vocabulary, WIDTH)).astype(np.float32)
    kind = gguf.GGMLQuantizationType[head_type]
    stored = gguf.quants.quantize(plain, kind)
    head = OutputHead(stored.view(np.uint8).ravel(), head_type, WIDTH, vocabulary)
    return head, gguf.quants.dequantize(stored, kind).reshape(vocabulary, WIDTH)


@pytest.mark.parametrize("head_type", SUPPORTED_HEADS)
@pytest.mark.parametrize("vocabulary", [1, 321, TILE, TILE + 1])
def test_logits_are_the_product_with_the_widened_weights(head_type: str, vocabulary: int) -> None:
    head, widened = weights(vocabulary, head_type)
    states = np.random.default_rng(1).normal(size=(5, WIDTH)).astype(np.float32)
    out = np.full((5, vocabulary), np.nan, np.float32)
    head.logits(states, out=out)
    exact = states.astype(np.float64) @ widened.astype(np.float64).T
    assert np.abs(out - exact).max() < 1e-4


def test_threads_change_no_bit() -> None:
    head, _ = weights(2 * TILE + 100, "BF16")
    states = np.random.default_rng(1).normal(size=(33, WIDTH)).astype(np.float32)
    found = []
    for threads in (1, 2, 3):
        out = np.empty((33, head.vocabulary), np.float32)
        head.logits(states, out=out, threads=threads)
        found.append(out.tobytes())
    assert len(set(found)) == 1


def test_a_head_is_read_from_the_gguf_where_it_lies(tmp_path: Path) -> None:
    pair = tiny_pair(tmp_path, vocabulary=320, bos=True)
    for path, kind in ((pair.base, "F32"), (pair.candidate, "F16")):
        head = read_head(path, read_gguf_header(path))
        assert (head.type_name, head.width, head.vocabulary) == (kind, 64, 320)
        (tensor,) = (t for t in gguf.GGUFReader(path).tensors if t.name == "output.weight")
        assert head.data.tobytes() == tensor.data.tobytes()


def described(architecture: str = "llama", tokens: int = 320, **more: float) -> dict[str, object]:
    """A model's metadata."""
    return {
        "general.architecture": architecture,
        "tokenizer.ggml.tokens": ArrayInfo("string", tokens, None),
        **{f"{architecture}.{key}": value for key, value in more.items()},
    }


def header(**changes: object) -> GgufHeader:
    tensor = TensorInfo("output.weight", (64, 320), "F16", 0, 64 * 320 * 2)
    given = GgufHeader(3, {}, {"output.weight": tensor}, file_bytes=1 << 20)
    return replace(given, **{"metadata": described(), **changes})  # type: ignore[arg-type]  # fields of the header


def test_a_plain_head_can_stand_for_its_models_logits() -> None:
    assert why_not_hidden(header()) is None


def test_tied_embeddings_are_the_head_where_there_is_none_of_its_own() -> None:
    tied = TensorInfo("token_embd.weight", (64, 320), "Q8_0", 0, 64 // 32 * 34 * 320)
    found = header(tensors={"token_embd.weight": tied})
    assert head_tensor(found) is tied
    assert why_not_hidden(found) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"metadata": described("gemma2")}, "architecture gemma2"),
        ({"metadata": described("command-r")}, "architecture command-r"),
        ({"metadata": described(final_logit_softcapping=30.0)}, "softcapping"),
        ({"metadata": described(logit_scale=0.5)}, "logit_scale"),
        ({"tensors": {}}, "no output head"),
        ({"metadata": described(tokens=321)}, "no output head that fits its 321 tokens"),
        (
            {"tensors": {"output.weight": TensorInfo("output.weight", (256, 320), "Q4_K", 0, 1)}},
            "head is Q4_K",
        ),
        (
            {
                "tensors": {
                    "output.weight": TensorInfo("output.weight", (64, 320), "F16", 0, 1),
                    "output.bias": TensorInfo("output.bias", (320,), "F32", 0, 1),
                }
            },
            "bias",
        ),
    ],
)
def test_a_head_that_is_not_the_whole_way_to_logits_is_refused(
    changes: dict[str, object], reason: str
) -> None:
    assert reason in str(why_not_hidden(header(**changes)))


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_the_engines_own_logits_are_the_heads_product(architecture: str, tmp_path: Path) -> None:
    pair = tiny_pair(tmp_path, vocabulary=320, bos=True)
    biases = {
        f"blk.{layer}.attn_{name}.bias": np.full(WIDTH, 0.1, np.float32)
        for layer in range(2)
        for name in "qkv"
    }
    more = biases if architecture == "qwen2" else {}
    path = rewritten(pair.base, tmp_path / "m.gguf", architecture=architecture, tensors=more)
    described = read_gguf_header(path)
    assert why_not_hidden(described) is None
    engine = LlamaEngine(path, 64, LlamaOptions())
    try:
        output = engine.evaluate(np.arange(200, 264, dtype=np.int32), hidden=True)
        assert output.hidden is not None
        rebuilt = np.empty_like(output.logits)
        read_head(path, described).logits(output.hidden, out=rebuilt)
        assert np.abs(rebuilt - output.logits).max() < 1e-4 < output.logits.std()
    finally:
        engine.close()
