"""Tiny model folders in Hugging Face's layout: one that transformers saved, and quicker ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

VOCABULARY, WIDTH = 320, 64
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""For configurations of most families that transformers has."""
_OF_EXPERTS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts_per_tok": 2,
    "initializer_range": 0.2,
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 12,
    "hidden_size": 8,
    "tie_word_embeddings": False,
    "dtype": "float32",
}


def save_llama(folder: Path, *, seed: int = 0) -> None:
    """A Llama of two layers with a tokenizer, in several shards, as transformers writes it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="100KB")
    save_words(folder)


def save_experts(folder: Path, *, seed: int = 0) -> None:
    """A Qwen 3 of one layer with four experts, and a tokenizer."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(**_OF_EXPERTS, moe_intermediate_size=32, num_experts=4)
    _save(folder, Qwen3MoeForCausalLM, config, seed)


def save_gpt_oss(folder: Path, *, seed: int = 0) -> None:
    """A gpt-oss of one layer with four experts, and a tokenizer."""
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(**_OF_EXPERTS, intermediate_size=WIDTH, num_local_experts=4)
    _save(folder, GptOssForCausalLM, config, seed)


def _save(folder: Path, model: Any, config: Any, seed: int) -> None:
    import torch

    torch.manual_seed(seed)
    model(config).save_pretrained(folder)
    save_words(folder)


def save_words(folder: Path) -> None:
    """A tokenizer of words such as ``<7>``."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"<{index}>": index for index in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, "<0>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def tensors(seed: int = 0) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """What a loader would not run, but a header describes."""
    rng = np.random.default_rng(seed)
    return {
        "model.embed_tokens.weight": rng.standard_normal((12, 8)).astype(np.float32),
        "model.norm.weight": rng.standard_normal(8).astype(np.float32),
        "lm_head.weight": rng.standard_normal((12, 8)).astype(np.float32),
    }


def write_folder(folder: Path, *, config: dict[str, Any] | None = None, shards: int = 1) -> Path:
    """A folder with three tensors in one to three files, and a tokenizer of one file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    (folder / "README.md").write_text("read me")
    if shards == 1:
        save_file(tensors(), folder / "model.safetensors")
        return folder
    weight_map = {}
    for index, name in enumerate(tensors()):
        file = f"model-{index % shards + 1:05}-of-{shards:05}.safetensors"
        weight_map[name] = file
        held = {each: tensors()[each] for each, where in weight_map.items() if where == file}
        save_file(held, folder / file)
    index_file = {"metadata": {"total_size": 800}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))
    return folder
