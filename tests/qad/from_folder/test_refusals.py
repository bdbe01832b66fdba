"""Folders that would be another model as a GGUF: each is refused, and the reason is named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kldcloud.errors import FormatError, UserError
from kldcloud.qad.from_folder.convert import convert_folder
from kldcloud.qad.from_folder.look import look_at_folder
from tests.qad.from_folder.folders import SMALL, configure, tiny_folder
from tests.qad.tiny_architectures import TinyShape

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 64,
    "attention_factor": 1.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Path]:
    def made(architecture: str) -> Path:
        pre = {"llama": "llama-bpe", "gemma3": None}.get(architecture, "qwen2")
        return tiny_folder(tmp_path, TinyShape(architecture, **SMALL), pre=pre)

    return made


def reason(folder: Path) -> str:
    """Why a folder is no teacher; nothing is left where the GGUF would have been."""
    target = folder.parent / "new.gguf"
    with pytest.raises(UserError) as caught:
        convert_folder(folder, target, {"data.text": "some text"})
    assert not list(folder.parent.glob("*new.gguf*"))
    said = str(caught.value)
    assert "\n" not in said
    assert "; " in said
    return said


@pytest.mark.parametrize(
    ("architecture", "changes", "says"),
    [
        (
            "llama",
            {"architectures": ["LlamaForSequenceClassification"]},
            "cannot train a LlamaForS",
        ),
        ("llama", {"model_type": "mistral"}, "cannot train a LlamaForCausalLM of type mistral"),
        ("llama", {"auto_map": {"AutoModel": "x.Y"}}, "has code of its own (auto_map)"),
        (
            "llama",
            {"quantization_config": {"quant_method": "compressed-tensors"}},
            "is quantised (compressed-tensors), and a teacher is the original",
        ),
        ("llama", {"attention_bias": True}, "attention_bias is True, which a GGUF of llama cannot"),
        ("llama", {"mlp_bias": True}, "mlp_bias is True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is gelu"),
        ("llama", {"rope_parameters": YARN}, "rope_parameters is {'rope_t"),
        ("llama", {"rope_parameters": DYNAMIC}, "rope_parameters is {'rope_t"),
        ("llama", {"rope_parameters": LONG}, "stretch short texts otherwise than long ones"),
        ("qwen2", {"rope_parameters": LLAMA3}, "rope_parameters is {'rope_t"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64}, "sliding"),
        ("qwen3", {"attention_bias": True}, "attention_bias is True, which a GGUF of qwen3 cannot"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        (
            "gemma3",
            {"query_pre_attn_scalar": 77},
            "query_pre_attn_scalar is 77, which llama.cpp takes for 16",
        ),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, and its weights"),
        ("llama", {"head_dim": 10**9}, "has an impossible head_dim"),
        ("llama", {"head_dim": 32}, "q_proj.weight is [64, 64], its config.json says [128, 64]"),
        ("llama", {"num_attention_heads": 3}, "config.json"),
        ("llama", {"rms_norm_eps": "small"}, "config.json"),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}}, "rope"),
        ("llama", {"tie_word_embeddings": True}, "its head is its embedding, and has another"),
        ("llama", {"num_hidden_layers": 1}, "has a tensor 'model.layers.1."),
        ("llama", {"num_hidden_layers": 3}, "has no tensor 'model.layers.2."),
    ],
)
def test_what_a_configuration_asks_for_and_a_gguf_does_not_say(
    make: Callable[[str], Path], architecture: str, changes: dict[str, Any], says: str
) -> None:
    folder = make(architecture)
    configure(folder, **changes)
    assert says in reason(folder)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("model.norm.weight", lambda w: w.double(), "model.norm.weight is F64, not F32, F16, BF16"),
        (
            "model.layers.0.mlp.up_proj.weight",
            lambda w: w.to(torch.float8_e4m3fn),
            "up_proj.weight is F8_E4M3, not F32",
        ),
        ("model.norm.weight", lambda _: None, "has no tensor 'model.norm.weight'"),
        ("model.norm.bias", lambda _: torch.ones(64), "has a tensor 'model.norm.bias', for which"),
    ],
)
def test_tensors_that_have_no_place_or_type(
    make: Callable[[str], Path], name: str, change: Callable[[Any], Any], says: str
) -> None:
    folder = make("llama")
    weights = load_file(folder / "model.safetensors")
    changed = change(weights.pop(name, None))
    if changed is not None:
        weights[name] = changed
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert says in reason(folder)


@pytest.mark.parametrize(
    ("keys", "new", "says"),
    [
        (("model", "type"), "WordPiece", "its model is WordPiece, not BPE"),
        (("model", "dropout"), 0.1, "its model sets dropout"),
        (("model", "end_of_word_suffix"), "</w>", "its model sets end_of_word_suffix"),
        (("model", "vocab"), {"a": "b"}, "its vocab does not map tokens to numbers"),
        (("model", "merges"), ["a zzzz"], "has a merge that makes no token: a zzzz"),
        (("model", "merges"), [["a"]], "has a merge that makes no token: ['a']"),
        (("model", "merges"), [], "has no merges"),
        (("added_tokens",), [5], "has an added token without id or content"),
        (("added_tokens",), [{"id": 5}], "has an added token without id or content"),
        (("added_tokens",), [{"id": 5, "content": "x"}], "has two tokens of number 5"),
        (
            ("added_tokens",),
            [{"id": 320, "content": "x"}],
            "token of number 320, and the embedding",
        ),
        (("pre_tokenizer",), {"type": "Whitespace"}, "not known here (Whitespace)"),
        (("normalizer",), {"type": "Lowercase"}, "changes text first (Lowercase)"),
    ],
)
def test_tokenizers_that_a_gguf_does_not_say(
    make: Callable[[str], Path], keys: tuple[str, ...], new: Any, says: str
) -> None:
    folder = make("llama")
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())
    place = whole
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = new
    path.write_text(json.dumps(whole))
    with pytest.raises(FormatError) as caught:
        look_at_folder(folder)
    assert says in str(caught.value)
    assert "convert_hf_to_gguf.py" in str(caught.value)


def test_half_a_character_is_no_token(make: Callable[[str], Path]) -> None:
    folder = make("llama")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": "a\ud800b"}))
    assert "'a\\ud800b' is no text; download it again" in reason(folder)


def test_a_tokenizer_in_other_files_alone_is_refused(make: Callable[[str], Path]) -> None:
    folder = make("llama")
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    with pytest.raises(FormatError, match=r"has no tokenizer\.json.*; let transformers' save_pret"):
        look_at_folder(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        # "he" is made of "h" and "e" first of all: once more at the end, or not at all.
        (lambda merges: [*merges, merges[0]], "early and late"),
        (lambda merges: merges[1:], "never makes"),
    ],
)
def test_merges_that_no_scores_order_are_refused(
    make: Callable[[str], Path], change: Callable[[list[Any]], list[Any]], says: str
) -> None:
    folder = make("gemma3")
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())
    whole["model"]["merges"] = change(whole["model"]["merges"])
    path.write_text(json.dumps(whole))
    with pytest.raises(FormatError, match=says):
        look_at_folder(folder)


@pytest.mark.parametrize(
    ("key", "new"),
    [
        ("pre_tokenizer", {"type": "Metaspace"}),
        ("normalizer", {"type": "NFKC"}),
        ("normalizer", None),
    ],
)
def test_sentencepiece_that_treats_text_in_another_way_is_refused(
    make: Callable[[str], Path], key: str, new: Any
) -> None:
    folder = make("gemma3")
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: new}))
    with pytest.raises(FormatError, match=r"text .*not known here"):
        look_at_folder(folder)


def test_a_first_look_needs_neither_torch_nor_transformers() -> None:
    code = "import sys; import kldcloud.qad.from_folder.look; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "kldcloud.qad.from_folder.tokenizer_file" in modules
    assert not modules & {"torch", "transformers", "llama_cpp"}
