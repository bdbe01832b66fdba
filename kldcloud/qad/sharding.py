"""Models spread over processes with FSDP2: each holds a part of every layer, and all of it in turn.

Embedding and output head stay whole in each process: the loss reads the head, and a frozen one has
neither gradient nor averages.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(model: Any) -> None:  # noqa: ANN401 - a transformers model
    """Spread a model's layers, in place; its parameters are new objects of the same names."""
    ignored = {model.get_input_embeddings().weight}
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model.model, ignored_params=ignored)


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
