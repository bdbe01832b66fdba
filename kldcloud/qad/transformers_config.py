"""The transformers configuration that a GGUF's own numbers amount to."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from kldcloud.qad.hyperparameters import Hyperparameters

_CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gemma3": Gemma3TextConfig,
}


def transformers_config(numbers: Hyperparameters) -> PreTrainedConfig:
    """The configuration of a model of these numbers.

    Tokens that begin, end or fill a text are left out: nothing here generates, and a filler would
    get no gradient in the embedding.
    """
    settings: dict[str, Any] = {
        "vocab_size": numbers.vocabulary,
        "hidden_size": numbers.width,
        "intermediate_size": numbers.feed_forward,
        "num_hidden_layers": numbers.layers,
        "num_attention_heads": numbers.heads,
        "num_key_value_heads": numbers.kv_heads,
        "head_dim": numbers.head_width,
        "max_position_embeddings": numbers.context,
        "rms_norm_eps": numbers.epsilon,
        "tie_word_embeddings": numbers.tied,
        "rope_parameters": _rope(numbers),
        "use_cache": False,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if numbers.architecture == "gemma3":
        windowed = numbers.windowed
        local = windowed.local if windowed else (False,) * numbers.layers
        settings |= {
            "layer_types": ["sliding_attention" if is_ else "full_attention" for is_ in local],
            # transformers masks with it even where no layer is local; the context hides nothing.
            "sliding_window": windowed.size if windowed else numbers.context,
            "query_pre_attn_scalar": numbers.query_width,
            "final_logit_softcapping": numbers.softcap,
            "rope_parameters": {
                "full_attention": _rope(numbers),
                "sliding_attention": {
                    "rope_type": "default",
                    "rope_theta": windowed.rope_base if windowed else numbers.rope_base,
                },
            },
        }
    return _CONFIGS[numbers.architecture](**settings)


def causal_class(numbers: Hyperparameters) -> str:
    """Name of the class that transformers makes for these numbers, as a config.json says it."""
    kind = AutoModelForCausalLM._model_mapping[_CONFIGS[numbers.architecture]]  # noqa: SLF001
    return str(kind.__name__)


def _rope(numbers: Hyperparameters) -> dict[str, Any]:
    base = {"rope_theta": numbers.rope_base}
    if numbers.rope_divisors is not None:
        # transformers' LongRoPE divides each frequency by a factor of its own, which is what
        # ggml's `freq_factors` do; one list for all lengths, and no scale on attention.
        factors = [numbers.rope_factor * divisor for divisor in numbers.rope_divisors]
        return base | {
            "rope_type": "longrope",
            "short_factor": factors,
            "long_factor": factors,
            "factor": 1.0,
            "attention_factor": 1.0,
            "original_max_position_embeddings": numbers.context,
        }
    if numbers.rope_factor != 1.0:
        return base | {"rope_type": "linear", "factor": numbers.rope_factor}
    return base | {"rope_type": "default"}


def empty_model(numbers: Hyperparameters, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """A model without memory for its parameters (they are on ``meta``), its buffers in place."""
    config = transformers_config(numbers)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention
        )
    # No file holds these two: they follow from the configuration, and are made again for real.
    decoder = model.get_submodule("model")
    decoder.rotary_emb = type(decoder.rotary_emb)(config)
    embedding = model.get_input_embeddings()
    if numbers.architecture == "gemma3":
        embedding.embed_scale = torch.tensor(embedding.scalar_embed_scale)
    return model


def rotary_embedding(config: PreTrainedConfig) -> torch.nn.Module:
    """What turns queries and keys in a model of this configuration: its frequencies, for real."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    made: torch.nn.Module = type(model.get_submodule("model").rotary_emb)(config)
    return made
