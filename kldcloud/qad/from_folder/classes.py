"""Which folders are models that can be trained here, by their headers and config.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kldcloud.models.folder_files import CONFIG
from kldcloud.models.model_folder import ModelFolder
from kldcloud.qad.from_folder.refusals import refused_model

CLASSES: Final[Mapping[str, tuple[str, str]]] = {
    "LlamaForCausalLM": ("llama", "llama"),
    "Qwen2ForCausalLM": ("qwen2", "qwen2"),
    "Qwen3ForCausalLM": ("qwen3", "qwen3"),
    "Gemma3ForCausalLM": ("gemma3_text", "gemma3"),
}
"""Each class's model_type, and the architecture that GGUFs call it."""

_MOST: Final[Mapping[str, int]] = {
    "head_dim": 1 << 16,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 30,
    "max_position_embeddings": 1 << 30,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
}


def check_class(folder: ModelFolder) -> str:
    """See that a folder is a model that is trained here.

    Returns:
        Its architecture, as GGUFs call it.

    Raises:
        FormatError: it is not, is quantised, or has code of its own.
    """
    if folder.quantization is not None:
        raise refused_model(
            folder.path, f"is quantised ({folder.quantization}), and a teacher is the original"
        )
    if folder.needs_remote_code:
        raise refused_model(folder.path, "has code of its own (auto_map), which is not run")
    model_type, architecture = CLASSES.get(folder.architecture, ("", ""))
    if model_type != folder.model_type:
        raise refused_model(
            folder.path, f"cannot train a {folder.architecture} of type {folder.model_type}"
        )
    if folder.head is None:
        raise refused_model(folder.path, "has no output head that is a matrix of numbers")
    return architecture


def check_sizes(folder: ModelFolder) -> None:
    """Bound the numbers of config.json by which transformers makes lists and tables.

    Raises:
        FormatError: one is out of bounds.
    """
    # Each layer has tensors of its own.
    for key, most in {**_MOST, "num_hidden_layers": len(folder.tensors)}.items():
        value = folder.config.get(key)
        if value is not None and not (type(value) is int and 1 <= value <= most):
            raise refused_model(folder.path / CONFIG, f"has an impossible {key}")
