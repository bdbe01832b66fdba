"""Teacher and student, loaded side by side: the student begins exactly as its init file is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kldcloud.errors import FormatError, UserError
from kldcloud.models.gguf_header import read_tensor_bytes
from kldcloud.qad.architectures import EMBEDDING, ModelMap, ModelParameter, map_model
from kldcloud.qad.formats.blocks import BLOCK_TYPES
from kldcloud.qad.formats.grid import Grid
from kldcloud.qad.student import Student, make_student
from kldcloud.qad.torch_model import load_model
from kldcloud.spec.qad_job import TrainSpec


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
    teacher: Path, init: Path, train: TrainSpec, device: torch.device | str = "cpu"
) -> Pair:
    """Load both models.

    A trained weight starts at the teacher's value where that rounds to the init's, which leaves it
    its distance from the next code, and at the init's own elsewhere: an importance matrix may have
    preferred another code. Either way the first forward pass computes what the init file holds.

    Args:
        teacher: a GGUF.
        init: a quantised GGUF of the same shapes.
        train: what is trained.
        device: where both go.

    Raises:
        FormatError: the two are not of one shape.
        UserError: there is nothing quantised to train.
    """
    of_teacher, of_init = map_model(teacher), map_model(init)
    check_shapes(of_teacher, of_init)
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


def check_shapes(teacher: ModelMap, init: ModelMap) -> None:
    """Refuse an init that is no quantised copy of the teacher.

    Raises:
        FormatError: says the first parameter that differs.
    """
    mine, theirs = _shapes(init), _shapes(teacher)
    if mine == theirs:
        return
    name = next(each for each in (*theirs, *mine) if mine.get(each) != theirs.get(each))
    raise FormatError(
        f"{init.path}: its {name} is {_shown(mine.get(name))}, the teacher's"
        f" {_shown(theirs.get(name))}",
        hint="the init must be a quantised file of the teacher itself",
    )


def _shapes(model: ModelMap) -> Mapping[str, tuple[int, ...]]:
    return {name: each.shape for name, each in model.parameters.items()}


def _shown(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else " x ".join(map(str, shape))
