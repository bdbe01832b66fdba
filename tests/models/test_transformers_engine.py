"""transformers as an engine: the model's own states, the head's product in float32, and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)

from kldcloud.corpus.chunks import ChunkShape
from kldcloud.divergence.base_rows import LogitRows
from kldcloud.divergence.kernel import token_statistics
from kldcloud.errors import EngineError, FormatError, UserError
from kldcloud.models import transformers_engine
from kldcloud.models.engine import ChunkOutput
from kldcloud.models.engines import load_engine
from kldcloud.models.llama_engine import LlamaOptions
from kldcloud.models.model_folder import read_model_folder
from kldcloud.models.transformers_options import (
    TransformersOptions,
    resolved_attention,
    resolved_dtype,
)
from kldcloud.staging.folder_head import read_base_head
from kldcloud.staging.head import NOTHING_AFTER
from kldcloud.staging.states import pack_states, unpack_states
from tests.model_folders import folder_of, write_tokenizer
from tests.qad.small_training import tiny_teacher
from tests.tiny_folders import SMALL
from tests.tiny_models import tiny_pair

Logits = npt.NDArray[np.float32]
PLAIN = TransformersOptions("float32")
V = 320


def tokens(context: int, seed: int = 0) -> npt.NDArray[np.int32]:
    return np.random.default_rng(seed).integers(3, V, context).astype(np.int32)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_teacher(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def folder(gguf: Path) -> Path:
    return folder_of(gguf, gguf.parent / "hf")


def evaluated(
    path: Path, chunk: npt.NDArray[np.int32], options: Any = PLAIN, threads: int = 1
) -> ChunkOutput:
    engine = load_engine(path, len(chunk), options, threads=threads)
    try:
        hidden = getattr(options, "head", "float32") == "float32"
        found = engine.evaluate(chunk, hidden=hidden)
        return ChunkOutput(found.logits.copy(), found.hidden)
    finally:
        engine.close()


def made(folder: Path, kind: type[PreTrainedModel], config: Any, gguf: Path) -> Path:
    """A model of a family with random weights, norms and biases away from their neutral values."""
    torch.manual_seed(3)
    model = kind(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    write_tokenizer(gguf, folder)
    return folder


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3"])
@pytest.mark.parametrize("context", [9, 64])
def test_it_says_what_llama_cpp_says(tmp_path: Path, architecture: str, context: int) -> None:
    gguf = tiny_teacher(tmp_path, architecture)
    folder = folder_of(gguf, tmp_path / "hf")
    chunk = tokens(context)
    options = LlamaOptions(kv_type_k="f32", kv_type_v="f32", flash_attention="off")
    ours, theirs = evaluated(folder, chunk), evaluated(gguf, chunk, options)
    shape = ChunkShape(context)
    assert ours.logits.shape == theirs.logits.shape == (shape.rows, V)
    found = token_statistics(LogitRows(theirs.logits), ours.logits, shape.next_tokens(chunk))
    assert found.kld.max() < 1e-8
    assert theirs.logits.std() > 0.1


def test_a_bos_goes_where_llama_cpp_puts_it(tmp_path: Path) -> None:
    for bos in (True, False):
        pair = tiny_pair(tmp_path / str(bos), vocabulary=V, bos=bos)
        folder = folder_of(pair.base, tmp_path / str(bos) / "hf")
        chunk = tokens(32)
        ours, theirs = evaluated(folder, chunk), evaluated(pair.base, chunk, LlamaOptions())
        found = token_statistics(
            LogitRows(theirs.logits), ours.logits, ChunkShape(32).next_tokens(chunk)
        )
        assert found.kld.max() < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_logits_are_rebuilt_from_a_stage_bit_for_bit(folder: Path, gguf: Path, dtype: str) -> None:
    del gguf
    options = TransformersOptions(dtype)
    found = evaluated(folder, tokens(64), options)
    assert found.hidden is not None
    head = read_base_head(folder, options)
    frame = pack_states(found.hidden, head.type_name)
    states = unpack_states(frame, head.type_name, len(found.hidden), head.width)
    rebuilt = np.empty_like(found.logits)
    head.logits(states, out=rebuilt, threads=2)
    assert rebuilt.tobytes() == found.logits.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_workers_threads_and_earlier_chunks_change_no_bit(folder: Path, dtype: str) -> None:
    options = TransformersOptions(dtype)
    alone = [evaluated(folder, tokens(64, seed), options).logits for seed in (0, 1)]
    engine = load_engine(folder, 64, options, threads=3)
    for seed in (1, 0, 1, 1):
        assert engine.evaluate(tokens(64, seed)).logits.tobytes() == alone[seed].tobytes()
    engine.close()


def test_half_precision_is_not_rounded_again(folder: Path) -> None:
    """In bfloat16 our logits are the states' products; the model's own are those, rounded."""
    options = TransformersOptions("bfloat16")
    ours = evaluated(folder, tokens(64), options)
    own = evaluated(folder, tokens(64), TransformersOptions("bfloat16", head="model"))
    weight = load_file(folder / "model.safetensors")["lm_head.weight"].bfloat16().double().numpy()
    assert ours.hidden is not None
    exact = ours.hidden.astype(np.float64) @ weight.T
    assert np.abs(ours.logits - exact).max() < 1e-5
    rounded = torch.from_numpy(exact).bfloat16().double().numpy()
    assert np.abs(own.logits - rounded).max() <= np.abs(exact).max() * 2.0**-7
    assert np.abs(own.logits - exact).max() > 100 * np.abs(ours.logits - exact).max()


FAMILIES = {
    "softcap": (
        Gemma2ForCausalLM,
        Gemma2Config(**SMALL, head_dim=16, final_logit_softcapping=5.0, sliding_window=16),
    ),
    "scale": (CohereForCausalLM, CohereConfig(**SMALL, logit_scale=0.25)),
    "divisor": (GraniteForCausalLM, GraniteConfig(**SMALL, logits_scaling=6.0)),
    "bias": (PhiForCausalLM, PhiConfig(**SMALL)),
}


@pytest.mark.parametrize("what", FAMILIES)
def test_what_a_family_does_to_its_logits_is_done(tmp_path: Path, gguf: Path, what: str) -> None:
    path = made(tmp_path / what, *FAMILIES[what], gguf)
    chunk = tokens(48)
    found, own = (
        evaluated(path, chunk),
        evaluated(path, chunk, TransformersOptions("float32", head="model")),
    )
    assert np.abs(found.logits - own.logits).max() < 1e-4 * np.abs(own.logits).max()
    head = read_base_head(path, PLAIN)
    assert (head.after == NOTHING_AFTER) == (what == "bias")
    assert (head.bias is not None) == (what == "bias")
    rebuilt = np.empty_like(found.logits)
    assert found.hidden is not None
    head.logits(found.hidden, out=rebuilt)
    assert rebuilt.tobytes() == found.logits.tobytes()


def test_attention_that_is_capped_is_run_by_what_caps_it(tmp_path: Path, gguf: Path) -> None:
    capped = Gemma2Config(**SMALL, head_dim=16, attn_logit_softcapping=0.01, sliding_window=16)
    path = made(tmp_path / "capped", Gemma2ForCausalLM, capped, gguf)
    attention = resolved_attention("sdpa", read_model_folder(path).config)
    found = evaluated(path, tokens(32), TransformersOptions("float32", attention=attention))
    # A cap of next to nothing makes all weights of attention equal, as queries of zeros do.
    tensors = load_file(path / "model.safetensors")
    for name in tensors:
        if name.endswith("q_proj.weight"):
            tensors[name] *= 0
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    level = evaluated(path, tokens(32), PLAIN)
    assert np.abs(found.logits - level.logits).max() < 0.01 * np.abs(level.logits).max()


@pytest.mark.parametrize(
    ("config", "attention"),
    [
        ({"model_type": "llama"}, "sdpa"),
        ({"model_type": "gemma2"}, "eager"),
        ({"model_type": "gemma2", "attn_logit_softcapping": None}, "sdpa"),
        ({"model_type": "gemma3", "attn_logit_softcapping": 50.0}, "eager"),
        ({"model_type": "any", "text_config": {"attn_logit_softcapping": 50.0}}, "eager"),
    ],
)
def test_a_cap_on_attention_is_looked_for(config: dict[str, Any], attention: str) -> None:
    assert resolved_attention("sdpa", config) == attention
    assert resolved_attention("eager", config) == "eager"


def test_logits_that_are_not_understood_are_refused_and_can_be_taken_as_they_are(
    tmp_path: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(tmp_path / "hf", *FAMILIES["softcap"], gguf)
    monkeypatch.setattr(transformers_engine, "after_head", lambda _: NOTHING_AFTER)
    with pytest.raises(EngineError, match="does something to its logits") as caught:
        load_engine(path, 32, PLAIN)
    assert "engine.transformers.head: model" in str(caught.value)
    own = evaluated(path, tokens(32), TransformersOptions("float32", head="model"))
    assert np.abs(own.logits).max() <= 5.0


def test_a_dtype_that_overflows_is_named(tmp_path: Path, gguf: Path) -> None:
    folder = folder_of(gguf, tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"] *= 1e6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    load_engine(folder, 32, PLAIN).close()
    with pytest.raises(EngineError, match="logits are not finite in float16"):
        load_engine(folder, 32, TransformersOptions("float16"))


def test_a_context_that_a_model_has_no_positions_for_is_refused(tmp_path: Path, gguf: Path) -> None:
    config = GPT2Config(vocab_size=V, n_positions=32, n_embd=64, n_layer=1, n_head=2)
    path = made(tmp_path / "hf", GPT2LMHeadModel, config, gguf)
    assert evaluated(path, tokens(32)).logits.shape == (15, V)
    with pytest.raises(EngineError, match="transformers failed on a chunk"):
        evaluated(path, tokens(64))


def test_whatever_a_model_raises_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load_engine(folder, 32, PLAIN)

    def raises(*_: Any, **__: Any) -> None:
        raise AttributeError("'NoneType' object has no attribute 'x'\nat length")

    monkeypatch.setattr(engine, "_model", raises)
    with pytest.raises(EngineError, match=r"failed on a chunk: 'NoneType' .* 'x' at length"):
        engine.evaluate(tokens(32))


def test_a_tensor_that_is_not_there_is_never_made_up(tmp_path: Path, gguf: Path) -> None:
    folder = folder_of(gguf, tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FormatError, match=r"has no tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        load_engine(folder, 32, PLAIN)


def test_scales_that_no_configuration_speaks_of_are_refused(tmp_path: Path, gguf: Path) -> None:
    folder = folder_of(gguf, tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight_scale"] = torch.ones(1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FormatError, match=r"up_proj\.weight_scale would not be used"):
        load_engine(folder, 32, PLAIN)


def test_code_that_comes_with_a_folder_is_not_run(tmp_path: Path, gguf: Path) -> None:
    folder = folder_of(gguf, tmp_path / "hf")
    ran = tmp_path / "ran"
    (folder / "modeling_x.py").write_text(
        f"open({str(ran)!r}, 'w')\nclass X: pass\nclass C: pass\n"
    )
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {
        "model_type": "unheard-of",
        "auto_map": {"AutoConfig": "modeling_x.C", "AutoModelForCausalLM": "modeling_x.X"},
    }
    path.write_text(json.dumps(config))
    with pytest.raises(EngineError, match=r"has no class for model_type 'unheard-of'"):
        load_engine(folder, 32, PLAIN)
    assert not ran.exists()


def test_memory_that_is_not_enough_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load_engine(folder, 32, PLAIN)

    def exhausted(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7.00 GiB")

    monkeypatch.setattr(engine, "_model", type("M", (), {"device": "cpu", "__call__": exhausted})())
    with pytest.raises(EngineError, match=r"Tried to allocate 7\.00 GiB") as caught:
        engine.evaluate(tokens(32))
    assert "engine.transformers.offload: true" in str(caught.value)


def test_memory_that_does_not_hold_the_model_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    def exhausted(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", exhausted)
    with pytest.raises(EngineError, match=r"not enough GPU memory: its weights are 0\.0 GiB"):
        load_engine(folder, 32, PLAIN)


@pytest.mark.parametrize(
    ("recipe", "least", "most"),
    [
        ("torchao-int8", 1e-7, 1e-3),
        ("torchao-int4", 1e-4, 0.3),
        ("torchao-fp8", 1e-5, 1e-2),
        ("bnb-int8", 1e-6, 1e-2),
        ("bnb-nf4", 1e-4, 0.3),
        ("bnb-fp4", 1e-4, 0.5),
    ],
)
def test_a_recipe_loses_something_and_not_everything(
    folder: Path, recipe: str, least: float, most: float
) -> None:
    chunk = tokens(64)
    base = evaluated(folder, chunk)
    found = evaluated(folder, chunk, TransformersOptions("float32", recipe=recipe))
    statistics = token_statistics(
        LogitRows(base.logits), found.logits, ChunkShape(64).next_tokens(chunk)
    )
    assert least < statistics.kld.mean() < most


def test_what_an_engine_adds_up_to_is_named() -> None:
    facts = TransformersOptions("bfloat16", threads=2, recipe="torchao-int8").fingerprint()
    assert facts["name"] == "transformers"
    assert facts["torch"] == torch.__version__
    assert (facts["dtype"], facts["threads"], facts["backend"]) == ("bfloat16", "2", "CPU")
    assert facts["recipe"].startswith("torchao-int8 (torchao ")
    stored = TransformersOptions("float32", quantization="compressed-tensors").fingerprint()
    assert stored["quantization"].startswith("compressed-tensors (compressed-tensors ")
    unknown = TransformersOptions("float32", quantization="no-such-method").fingerprint()
    assert unknown["quantization"] == "no-such-method"


def test_a_dtype_is_the_stored_one_on_a_gpu_alone() -> None:
    assert resolved_dtype("auto", "bfloat16", "cuda") == "bfloat16"
    assert resolved_dtype("auto", "bfloat16", "cpu") == "float32"
    assert resolved_dtype("auto", "float8_e4m3fn", "cuda") == "float32"
    assert resolved_dtype("float16", "bfloat16", "cuda") == "float16"


def test_a_library_that_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(UserError, match="torchao-int8 needs torchao") as caught:
        load_engine(folder, 32, TransformersOptions("float32", recipe="torchao-int8"))
    assert "pip install" in str(caught.value)
