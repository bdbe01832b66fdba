"""A model's numbers and tokenizer as the metadata of a GGUF, under llama.cpp's keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from kldcloud.qad.from_folder.tokenizer_file import TokenizerFacts
from kldcloud.qad.gguf_write import Value
from kldcloud.qad.hyperparameters import Hyperparameters

FILE_TYPES: Final = {"F32": 0, "F16": 1, "BF16": 32}
"""llama.cpp's numbers for files of these types (`enum llama_ftype`)."""


def model_metadata(numbers: Hyperparameters, type_name: str) -> Mapping[str, Value]:
    """What a file says of its model: no name, for the same model has the same file everywhere.

    Args:
        numbers: of the model.
        type_name: of most weights.
    """
    found: dict[str, Value] = {
        "context_length": numbers.context,
        "embedding_length": numbers.width,
        "block_count": numbers.layers,
        "feed_forward_length": numbers.feed_forward,
        "attention.head_count": numbers.heads,
        "attention.head_count_kv": numbers.kv_heads,
        "attention.key_length": numbers.head_width,
        "attention.value_length": numbers.head_width,
        "attention.layer_norm_rms_epsilon": numbers.epsilon,
        "rope.freq_base": numbers.rope_base,
        "rope.dimension_count": numbers.head_width,
        "vocab_size": numbers.vocabulary,
    }
    if numbers.rope_factor != 1.0:
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": numbers.rope_factor}
    if numbers.windowed is not None:
        found |= {
            "attention.sliding_window": numbers.windowed.size,
            "attention.sliding_window_pattern": np.array(numbers.windowed.local, np.bool_),
            "rope.freq_base_swa": numbers.windowed.rope_base,
        }
    if numbers.softcap is not None:
        found["final_logit_softcapping"] = numbers.softcap
    return {
        "general.architecture": numbers.architecture,
        "general.type": "model",
        "general.file_type": FILE_TYPES[type_name],
        **{f"{numbers.architecture}.{key}": value for key, value in found.items()},
    }


def tokenizer_metadata(
    facts: TokenizerFacts, special: Mapping[str, int], template: str, *, add_bos: bool
) -> Mapping[str, Value]:
    """What a file says of its tokenizer.

    Args:
        facts: of its tokens.
        special: numbers of the tokens that llama.cpp calls bos, eos, unknown and padding.
        template: of conversations; empty for none.
        add_bos: whether a text begins with the BOS token.
    """
    found: dict[str, Value] = {
        "ggml.model": facts.model,
        "ggml.pre": facts.pre,
        "ggml.tokens": facts.tokens,
        "ggml.token_type": facts.kinds,
    }
    if facts.scores is None:
        found["ggml.merges"] = facts.merges
    else:
        found["ggml.scores"] = facts.scores
    found |= {f"ggml.{name}_token_id": number for name, number in special.items()}
    found |= {
        "ggml.add_bos_token": add_bos,
        "ggml.add_eos_token": False,
        "ggml.add_space_prefix": facts.space_first,
    }
    if template:
        found["chat_template"] = template
    return {f"tokenizer.{key}": value for key, value in found.items()}
