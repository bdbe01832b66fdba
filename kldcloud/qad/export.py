"""The trained student as a GGUF: its codes in the init's blocks, everything else the init's.

An NVFP4 student's scales are trained too: those of blocks and of tensors go over the init's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kldcloud.errors import FormatError
from kldcloud.qad.architectures import ModelMap, ModelParameter, map_model
from kldcloud.qad.gguf_rewrite import rewrite_gguf, verify_export
from kldcloud.qad.nvfp4_file import in_file_order, rows_in_file
from kldcloud.qad.nvfp4_layers import Nvfp4Weight, weight_formats
from kldcloud.qad.pair import grid_of

F4 = npt.NDArray[np.float32]


def export_gguf(init: Path, weights: Mapping[str, torch.Tensor], target: Path) -> int:
    """Write a student.

    Args:
        init: the file that it started from.
        weights: trained parameters by transformers name, as a checkpoint has them.
        target: the new file; it appears only if it says exactly what was trained.

    Returns:
        How many weights were compared with what training used.

    Raises:
        FormatError: the init does not have these parameters, or the file does not dequantise to
            what the training forward pass used.
        EngineError: a weight is not finite.
        StoreError: no room for the file.
    """
    model = map_model(init)
    trained = [_trained(model, name, weights[name]) for name in sorted(weights)]
    rounded = nvfp4_formats(model, weights)
    compared = 0

    def check(part: Path) -> None:
        nonlocal compared
        compared = verify_export(
            part, ((p.tensor.name, _expected(model, rounded, p, w)) for p, w in trained)
        )

    stored = (each for p, w in trained for each in _stored(model, rounded, p, w))
    rewrite_gguf(init, target, stored, check=check)
    return compared


def changed_codes(init: Path, weights: Mapping[str, torch.Tensor]) -> float:
    """Share of the codes of trained tensors that are no longer the init's."""
    model = map_model(init)
    changed = total = 0
    for grid, weight in _gridded(model, weights):
        before = grid.codes(grid.dequantize())
        changed += int((grid.codes(weight) != before).sum())
        total += weight.numel()
    return changed / total if total else 0.0


def _gridded(
    model: ModelMap, weights: Mapping[str, torch.Tensor]
) -> Iterator[tuple[Any, torch.Tensor]]:
    for name in sorted(weights):
        parameter, weight = _trained(model, name, weights[name])
        if parameter.tensor.type_name != "F32":
            yield grid_of(model, parameter), weight


def _trained(
    model: ModelMap, name: str, weight: torch.Tensor
) -> tuple[ModelParameter, torch.Tensor]:
    parameter = model.parameters.get(name)
    if parameter is None or tuple(weight.shape) != parameter.shape:
        raise FormatError(f"{model.path}: has no parameter {name} of shape {tuple(weight.shape)}")
    return parameter, weight


def nvfp4_formats(
    model: ModelMap, weights: Mapping[str, torch.Tensor]
) -> Mapping[str, Nvfp4Weight]:
    """The formats of those of these weights that are NVFP4, by name; all of them, or none."""
    return weight_formats(model, weights.__getitem__) if _has_nvfp4(model, weights) else {}


def _has_nvfp4(model: ModelMap, weights: Mapping[str, torch.Tensor]) -> bool:
    return any(model.parameters[name].tensor.type_name == "NVFP4" for name in weights)


def _stored(
    model: ModelMap,
    rounded: Mapping[str, Nvfp4Weight],
    parameter: ModelParameter,
    weight: torch.Tensor,
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """The bytes of a tensor, in the file's order, and of the scale beside it."""
    name = parameter.tensor.name
    if parameter.tensor.type_name == "F32":
        yield name, _in_file(parameter, weight)
    elif parameter.scale is not None:
        scale = rounded[parameter.name].tensor_scale()
        yield name, in_file_order(parameter, weight, scale)
        yield parameter.scale.name, scale.numpy().reshape(1)
    else:
        yield name, grid_of(model, parameter).pack(weight)


def _expected(
    model: ModelMap,
    rounded: Mapping[str, Nvfp4Weight],
    parameter: ModelParameter,
    weight: torch.Tensor,
) -> F4:
    """What the training forward pass used, in the file's order."""
    if parameter.tensor.type_name == "F32":
        return _in_file(parameter, weight)
    found = rounded.get(parameter.name) or grid_of(model, parameter)
    return rows_in_file(parameter, found.fake_quantize(weight).numpy())


def _in_file(parameter: ModelParameter, weight: torch.Tensor) -> F4:
    values = weight.float().numpy()
    return values + np.float32(parameter.added) if parameter.added else values
