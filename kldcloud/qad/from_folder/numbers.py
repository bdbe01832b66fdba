"""The numbers of a model folder as a GGUF has them, or the name of what a GGUF cannot say.

transformers' own configuration class reads config.json, so what the file leaves out has its
family's default. The numbers are taken from that, a configuration is made of the numbers alone, and
the two are compared: whatever differs and decides a logit would be lost, and is refused by name.
Rotations are compared as frequencies, so every way to write them down is one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch

from kldcloud.errors import EngineError, FormatError
from kldcloud.models.folder_files import CONFIG
from kldcloud.models.model_folder import ModelFolder
from kldcloud.models.transformers_load import folder_config
from kldcloud.qad.from_folder.classes import check_class, check_sizes
from kldcloud.qad.from_folder.refusals import refused_model
from kldcloud.qad.hyperparameters import Hyperparameters, WindowedAttention
from kldcloud.qad.transformers_config import rotary_embedding, transformers_config

_STRETCHES: Final = frozenset({"default", "linear"})
_DIVIDES: Final = frozenset({"llama3", "longrope"})
"""Rotations that a GGUF has as one divisor a frequency, which llama.cpp heeds in llama alone."""
_MOVES_NO_LOGIT: Final = frozenset(
    {
        "_name_or_path",
        "_sliding_window_pattern",  # layer_types says it
        "architectures",
        "attention_dropout",  # of training
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "label2id",
        "max_window_layers",  # layer_types says it
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "rope_parameters",  # compared as frequencies
        "transformers_version",
        "use_cache",
    }
)
_SHOWN: Final = 60
_NEAR: Final = 1e-6
"""Frequencies are made in float32, by one or two operations."""


def folder_numbers(folder: ModelFolder) -> Hyperparameters:
    """The numbers of a model, floats rounded to float32 as a GGUF keeps them.

    Raises:
        FormatError: it is no model that is trained here, or config.json asks for what a GGUF does
            not say.
    """
    architecture = check_class(folder)
    check_sizes(folder)
    try:
        config = folder_config(folder)
    except EngineError as error:
        raise FormatError(error.message, hint=error.hint) from error
    try:
        numbers = _numbers(folder, config, architecture)
        made = transformers_config(numbers)
        differ = [*_differences(config, made, numbers), *_rotations(config, made)]
    except (
        AttributeError,
        ArithmeticError,
        KeyError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        # What a stranger's numbers do to transformers, which checks only some of them.
        reason = str(error).split("\n", 1)[0][:_SHOWN]
        raise refused_model(folder.path / CONFIG, f"its numbers make no model: {reason}") from error
    for key, value in differ:
        raise refused_model(
            folder.path / CONFIG,
            f"{key} is {str(value)[:_SHOWN]}, which a GGUF of {architecture} cannot say here",
        )
    return numbers


def _numbers(folder: ModelFolder, config: Any, architecture: str) -> Hyperparameters:  # noqa: ANN401
    head_width = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    rope = config.rope_parameters
    gemma = architecture == "gemma3"
    windowed = None
    if gemma:
        local = tuple(each == "sliding_attention" for each in config.layer_types)
        base = _float32(rope["sliding_attention"]["rope_theta"])
        windowed = WindowedAttention(config.sliding_window, local, base) if any(local) else None
        rope = rope["full_attention"]
    kind = rope["rope_type"]
    return Hyperparameters(
        architecture=architecture,
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        vocabulary=folder.vocabulary_size,
        feed_forward=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_width=head_width,
        context=config.max_position_embeddings,
        epsilon=_float32(config.rms_norm_eps),
        rope_base=_float32(rope["rope_theta"]),
        rope_factor=_float32(rope["factor"]) if kind == "linear" else 1.0,
        rope_divisors=_divisors(folder, config) if kind in _DIVIDES else None,
        tied=bool(config.tie_word_embeddings),
        windowed=windowed,
        query_width=config.query_pre_attn_scalar if gemma else head_width,
        softcap=_float32(config.final_logit_softcapping or 0.0) or None if gemma else None,
    )


def _divisors(folder: ModelFolder, config: Any) -> tuple[float, ...]:  # noqa: ANN401
    """What divides each frequency: that of plain rotation over what transformers comes to."""
    rope = config.rope_parameters
    if rope.get("short_factor") != rope.get("long_factor"):
        raise refused_model(
            folder.path / CONFIG,
            "rope_parameters stretch short texts otherwise than long ones (longrope)",
        )
    found = rotary_embedding(config).get_buffer("inv_freq").double()
    steps = torch.arange(len(found), dtype=torch.float64) / len(found)
    divisors = float(rope["rope_theta"]) ** -steps / found
    if not bool((divisors.isfinite() & (divisors > 0)).all()):
        raise FormatError(f"{folder.path / CONFIG}: rope_parameters make no rotation")
    return tuple(divisors.float().tolist())


def _differences(
    config: Any,  # noqa: ANN401 - one class a family
    made: Any,  # noqa: ANN401
    numbers: Hyperparameters,
) -> Iterator[tuple[str, object]]:
    """Keys that the family's class reads and that decide a logit, with what the folder has."""
    theirs, ours = config.to_dict(), made.to_dict()
    unused = {"sliding_window"} if numbers.windowed is None and "layer_types" in ours else set()
    for key in sorted(type(config)().to_dict().keys() - _MOVES_NO_LOGIT - unused):
        if not _same(theirs.get(key), ours.get(key)):
            yield key, theirs.get(key)


def _same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return _float32(one) == _float32(other)
    return type(one) is type(other) and one == other


def _rotations(config: Any, made: Any) -> Iterator[tuple[str, object]]:  # noqa: ANN401
    rope = config.rope_parameters
    kinds = _STRETCHES | _DIVIDES if config.model_type == "llama" else _STRETCHES
    # Others change with a text's length, which the frequencies of a new model do not show.
    if "full_attention" in rope:
        known = rope["full_attention"]["rope_type"] in kinds
        known &= rope["sliding_attention"]["rope_type"] == "default"
    else:
        known = rope["rope_type"] in kinds
    if not known:
        yield "rope_parameters", rope
        return
    theirs, ours = rotary_embedding(config), rotary_embedding(made)
    wanted, found = dict(theirs.named_buffers()), dict(ours.named_buffers())
    same = wanted.keys() == found.keys() and all(
        each.shape == found[name].shape and torch.allclose(each, found[name], rtol=_NEAR, atol=0.0)
        for name, each in wanted.items()
    )
    scales = [getattr(theirs, name) for name in vars(theirs) if name.endswith("attention_scaling")]
    if not same or not all(math.isclose(scale, 1.0) for scale in scales):
        yield "rope_parameters", rope


def _float32(value: float) -> float:
    return float(np.float32(value))
