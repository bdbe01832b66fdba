"""Teacher and student, loaded side by side: the student begins exactly as its init file is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kldcloud.errors import FormatError, UserError
from kldcloud.models.gguf_header import read_tensor_bytes
from kldcloud.qad.architectures import (
    EMBEDDING,
    ModelMap,
    ModelParameter,
    check_shapes,
    map_model,
)
from kldcloud.qad.formats.blocks import BLOCK_TYPES
from kldcloud.qad.formats.grid import Grid
from kldcloud.qad.nvfp4_layers import input_formats, weight_formats
from kldcloud.qad.student import Student, make_student
from kldcloud.qad.torch_model import load_model
from kldcloud.spec.qad_job import TrainSpec

LargestInputs = Callable[[Any, tuple[str, ...]], Mapping[str, float]]
"""Given the teacher and names of weights, the largest magnitude that enters each."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What a training process holds.

    Attributes:
        teacher: the transformers model, frozen.
        student: the init file's values, on the grids of its tensors.
    """

    teacher: Any
    student: Student


def load_pair(
    teacher: Path,
    init: Path,
    train: TrainSpec,
    device: torch.device | str = "cpu",
    calibrate: LargestInputs | None = None,
) -> Pair:
    """Load both models.

    On a grid, a trained weight starts at the teacher's value where that rounds to the init's, which
    leaves it its distance from the next code, and at the init's own elsewhere: an importance matrix
    may have preferred another code. An NVFP4 student's weights all start at the teacher's, as its
    init is the teacher rounded. Either way the first forward pass has the weights of the init file.

    Args:
        teacher: a GGUF.
        init: a quantised GGUF of the same shapes.
        train: what is trained.
        device: where both go.
        calibrate: for the inputs of NVFP4 matrices, which are then NVFP4 as well; None leaves them
            as they are.

    Raises:
        FormatError: the two are not of one shape, or an NVFP4 init is not the teacher rounded.
        UserError: there is nothing quantised to train.
    """
    of_teacher, of_init = map_model(teacher), map_model(init)
    check_shapes(of_teacher, of_init)
    if is_nvfp4(of_init):
        return _nvfp4_pair(of_teacher, of_init, train, device, calibrate)
    grids = dict(trained_grids(of_init, train))
    models = [load_model(path, device=device) for path in (teacher, init)]
    models[0].requires_grad_(requires_grad=False)
    wanted = dict(models[0].named_parameters())
    with torch.no_grad():
        for name, parameter in models[1].named_parameters():
            if name in grids:
                grids[name] = grids[name].to(device)
                ours = grids[name].fake_quantize(wanted[name])
                parameter.copy_(torch.where(ours == parameter, wanted[name], parameter))
    student = make_student(models[1], grids, norms=train.train_norms, head=train.train_head)
    return Pair(models[0], student)


def is_nvfp4(model: ModelMap) -> bool:
    """Whether a file has matrices in NVFP4."""
    return any(each.tensor.type_name == "NVFP4" for each in model.parameters.values())


def _nvfp4_pair(
    of_teacher: ModelMap,
    of_init: ModelMap,
    train: TrainSpec,
    device: torch.device | str,
    calibrate: LargestInputs | None,
) -> Pair:
    models = [load_model(each.path, device=device) for each in (of_teacher, of_init)]
    models[0].requires_grad_(requires_grad=False)
    wanted, ours = (dict(each.named_parameters()) for each in models)
    rounded = weight_formats(of_teacher, wanted.__getitem__)
    with torch.no_grad():
        for name, weight_format in rounded.items():
            if not torch.equal(weight_format.fake_quantize(wanted[name]), ours[name]):
                raise FormatError(
                    f"{of_init.path}: its {name} is not the teacher's rounded to NVFP4",
                    hint="write student: {format: nvfp4} and no init: it is made from the teacher",
                )
            ours[name].copy_(wanted[name])
    largest = calibrate(models[0], tuple(rounded)) if calibrate else {}
    student = make_student(
        models[1],
        weight_formats(of_init, models[1].get_parameter),
        codes=train.train_codes,
        norms=train.train_norms,
        head=train.train_head,
        inputs=input_formats(largest, device),
    )
    return Pair(models[0], student)


def trained_grids(init: ModelMap, train: TrainSpec) -> Mapping[str, Grid]:
    """The grids of those of the init's tensors that are trained, in the model's row order.

    A head that is not quantised is trained as it is.

    Raises:
        UserError: codes are to be trained, and the init has none.
    """
    grids = {}
    for name, parameter in init.parameters.items():
        is_head = name == init.head
        wanted = train.train_head if is_head else train.train_codes and name != EMBEDDING
        if wanted and parameter.tensor.type_name in BLOCK_TYPES:
            grids[name] = grid_of(init, parameter)
    if train.train_codes and not set(grids) - {init.head}:
        raise UserError(
            f"{init.path}: has no quantised tensor in its layers",
            hint=f"start from a file of {', '.join(BLOCK_TYPES)}",
        )
    return grids


def grid_of(init: ModelMap, parameter: ModelParameter) -> Grid:
    """The grid of one tensor, in the model's row order."""
    rows, columns = parameter.shape
    data = read_tensor_bytes(init.path, parameter.tensor)
    grid = Grid.from_bytes(parameter.tensor.type_name, data, (rows, columns))
    if parameter.file_rows is None:
        return grid
    return grid.permuted(np.asarray(parameter.file_rows))
