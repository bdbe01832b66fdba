"""The trained student as a GGUF: its codes in the init's blocks, everything else the init's."""

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
    compared = 0

    def check(part: Path) -> None:
        nonlocal compared
        compared = verify_export(
            part, ((p.tensor.name, _expected(model, p, w)) for p, w in trained)
        )

    rewrite_gguf(
        init, target, ((p.tensor.name, _stored(model, p, w)) for p, w in trained), check=check
    )
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


def _stored(model: ModelMap, parameter: ModelParameter, weight: torch.Tensor) -> npt.NDArray[Any]:
    """The bytes of a tensor, in the file's order."""
    if parameter.tensor.type_name == "F32":
        return _in_file(parameter, weight)
    return grid_of(model, parameter).pack(weight)


def _expected(model: ModelMap, parameter: ModelParameter, weight: torch.Tensor) -> F4:
    """What the training forward pass used, in the file's order."""
    if parameter.tensor.type_name == "F32":
        return _in_file(parameter, weight)
    values: F4 = grid_of(model, parameter).fake_quantize(weight).numpy()
    if parameter.file_rows is None:
        return values
    in_file = np.empty_like(values)
    in_file[parameter.file_rows] = values
    return in_file


def _in_file(parameter: ModelParameter, weight: torch.Tensor) -> F4:
    values = weight.float().numpy()
    return values + np.float32(parameter.added) if parameter.added else values
