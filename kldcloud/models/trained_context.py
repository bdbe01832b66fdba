"""How many tokens a model was made to read at once, by what its file or folder says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, TypeGuard

from kldcloud.models.gguf_header import GgufHeader
from kldcloud.models.model_folder import ModelFolder

_LENGTHS: Final = ("max_position_embeddings", "n_positions")
_TABLES: Final = (".wpe.weight", ".embed_positions.weight")
_SCALINGS: Final = ("rope_scaling", "rope_parameters")


def trained_context(header: GgufHeader | ModelFolder) -> int | None:
    """The longest context that a model was trained for, in tokens; None where nothing says.

    Where its positions are scaled, that is the length times the factor if it is more: some
    configurations give the length before scaling (Qwen), others the one after it (Llama 3.1).
    """
    if isinstance(header, GgufHeader):
        return _of_gguf(header)
    outer, inner = header.config, header.config.get("text_config")
    found = (_of_config(each) for each in (inner, outer) if isinstance(each, dict))
    return next((each for each in found if each is not None), None)


def learned_positions(header: GgufHeader | ModelFolder) -> int | None:
    """Rows of a model's table of positions, beyond which it has none; None if it has no table."""
    if isinstance(header, GgufHeader):
        table = header.tensors.get("position_embd.weight")
        return table.shape[-1] if table else None
    rows = (each.shape[0] for each in header.tensors if each.name.endswith(_TABLES))
    return next(rows, None)


def _of_gguf(header: GgufHeader) -> int | None:
    def value(key: str) -> object:
        return header.metadata.get(f"{header.architecture}.{key}")

    length = value("context_length")
    if not _is_count(length):
        return None
    original = value("rope.scaling.original_context_length")
    return _scaled(length, original, value("rope.scaling.factor"))


def _of_config(config: Mapping[str, Any]) -> int | None:
    length = next((config[key] for key in _LENGTHS if _is_count(config.get(key))), None)
    if length is None:
        return None
    scaling: Mapping[str, Any] = next(
        (config[key] for key in _SCALINGS if isinstance(config.get(key), dict)), {}
    )
    return _scaled(length, scaling.get("original_max_position_embeddings"), scaling.get("factor"))


def _scaled(length: int, original: object, factor: object) -> int:
    if not isinstance(factor, int | float) or not 1 < factor < math.inf:
        return length
    unscaled = original if _is_count(original) else length
    return max(length, int(unscaled * factor))


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value > 0
