"""Models spread over processes with FSDP2: each holds a part of every layer, and all of it in turn.

Embedding and output head stay whole in each process: the loss reads the head, and a frozen one has
neither gradient nor averages.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from kldcloud.errors import UserError
from kldcloud.qad.pair import Pair
from kldcloud.spec.qad_job import TrainSpec


def shard(model: Any) -> None:  # noqa: ANN401 - a transformers model
    """Spread a model's layers, in place; its parameters are new objects of the same names."""
    ignored = {model.get_input_embeddings().weight}
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model.model, ignored_params=ignored)


def shard_pair(pair: Pair) -> Pair:
    """Spread teacher and student, whose trained parameters are found again by name."""
    shard(pair.teacher)
    model = pair.student.model
    shard(model)
    named = dict(model.named_parameters())
    groups = {
        group: {name: named[name] for name in members}
        for group, members in pair.student.groups.items()
    }
    return Pair(pair.teacher, replace(pair.student, groups=groups))


def check_even(train: TrainSpec, world: int) -> None:
    """Refuse what processes that share their models cannot do.

    Raises:
        UserError: a step's chunks cannot be dealt out evenly, or the head is to be trained.
    """
    if train.global_batch % (world * train.micro_batch):
        raise UserError(
            f"train.global_batch: {train.global_batch} chunks cannot be dealt out evenly to {world}"
            f" processes, {train.micro_batch} at a time",
            hint=f"make it a multiple of {world * train.micro_batch}",
        )
    if train.train_head:
        raise UserError(
            "train.train_head: the head stays whole in every process, so it cannot be trained"
            " on several GPUs yet",
            hint="set it to false",
        )


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor; every process must ask for the same ones in the same order."""
    if isinstance(tensor, DTensor):
        gathered: torch.Tensor = tensor.full_tensor()
        return gathered
    return tensor


def like(values: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Values that every process has, spread as a parameter is, on its device."""
    values = values.to(parameter.device)
    if isinstance(parameter, DTensor):
        spread: torch.Tensor = distribute_tensor(
            values, parameter.device_mesh, parameter.placements
        )
        return spread
    return values
