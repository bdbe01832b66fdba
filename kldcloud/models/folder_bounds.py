"""Whether the numbers of a config.json can be those of the weights beside it.

A loader makes room by the configuration before it sees that the tensors are of another size, and
counts to its number of layers even where there are none.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from kldcloud.errors import FormatError
from kldcloud.models.folder_config import of_language_model
from kldcloud.models.regular_file import DOWNLOAD_AGAIN
from kldcloud.models.safetensors_header import StoredTensor

_COUNTS: Final = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
_ALWAYS_ALLOWED: Final = 1024
"""Layers that cost nothing; models that use one layer again and again have fewer tensors."""
_MOST_WEIGHTS_A_BYTE: Final = 8
_LAYER: Final = re.compile(r"(.*?\.)?(layers|h|blocks)\.(\d{1,9})\.(.*)")


def check_layer_counts(
    path: Path, config: Mapping[str, Any], tensors: Collection[StoredTensor]
) -> None:
    """See that every part of a model has layers, and not more than there are tensors.

    Args:
        path: of the config.json.
        config: what it says.
        tensors: all that the weight files have.

    Raises:
        FormatError: one has not.
    """
    most = max(len(tensors), _ALWAYS_ALLOWED)
    for part in (config, *(each for each in config.values() if isinstance(each, dict))):
        for key in _COUNTS:
            count = part.get(key)
            if isinstance(count, int | float) and not 1 <= count <= most:
                raise FormatError(
                    f"{path}: {key} is {str(count)[:20]}, and its weights are {len(tensors):,} "
                    "tensors",
                    hint=DOWNLOAD_AGAIN,
                )


def check_weight_count(path: Path, weights: int, stored: int) -> None:
    """See that a model's weights fit into its files, at a bit each or more.

    Args:
        path: of the config.json.
        weights: that it describes.
        stored: bytes of all tensors.

    Raises:
        FormatError: they do not.
    """
    if weights > _MOST_WEIGHTS_A_BYTE * stored:
        raise FormatError(
            f"{path}: describes a model of {weights:,} weights, and the files beside it hold "
            f"{stored:,} bytes",
            hint="take the config.json that belongs to these weights",
        )


def check_no_layer_left_out(
    path: Path, config: Mapping[str, Any], unused: Iterable[str], used: Collection[str]
) -> None:
    """See that what a model leaves unused of its files is no layer like those that it has.

    Transformers leaves tensors alone that a configuration has no place for: with half the layers
    in it, half a model would be measured. Layers that predict later tokens are left out by right.

    Args:
        path: of the config.json.
        config: what it says.
        unused: names of tensors.
        used: names of the model's own.

    Raises:
        FormatError: one is of such a layer.
    """
    kinds = {_without_number(name) for name in used}
    later = _later_tokens(config)
    for name in sorted(unused):
        found = _LAYER.fullmatch(name)
        if found and int(found[3]) not in later and _without_number(name) in kinds:
            raise FormatError(
                f"{path}: has fewer layers than the weights: {name} would not be used",
                hint="take the config.json that belongs to these weights",
            )


def _later_tokens(config: Mapping[str, Any]) -> range:
    """The numbers of layers that predict tokens after the next one: behind all others."""
    said = of_language_model(config)
    layers, more = said.get("num_hidden_layers"), said.get("num_nextn_predict_layers")
    if not isinstance(layers, int) or not isinstance(more, int):
        return range(0)
    return range(layers, layers + more)


def _without_number(name: str) -> str:
    found = _LAYER.fullmatch(name)
    return "".join((found[1] or "", found[2], found[4])) if found else name
