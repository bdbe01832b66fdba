"""A transformers model whose parameters are a GGUF's tensors.

The file alone decides: its metadata makes the configuration, its tensors the weights. A Hub
configuration is never asked, so the torch model computes what llama.cpp runs.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from kldcloud.errors import EngineError
from kldcloud.models.dequantize import dequantize
from kldcloud.models.gguf_header import read_tensor_bytes
from kldcloud.qad.architectures import ModelMap, ModelParameter, map_model
from kldcloud.qad.extra import MODELS, require_extra

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

F4 = npt.NDArray[np.float32]


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    attention: Literal["eager", "sdpa"] = "sdpa",
) -> PreTrainedModel:
    """A causal language model from a GGUF file.

    Beside the model itself, at most its largest tensor is held (twice where rows are reordered).

    Args:
        path: a GGUF of an architecture and of types that `map_model` takes.
        dtype: of the parameters; None for float32. Rotary frequencies stay float32.
        device: where it goes.
        attention: transformers' implementation.

    Returns:
        The model in evaluation mode, every parameter with ``requires_grad``.

    Raises:
        UserError: torch or transformers is missing, or there is no such file.
        FormatError: see `map_model`.
        EngineError: this version of transformers has parameters that the file does not fill.
    """
    require_extra(MODELS)
    import torch

    from kldcloud.qad.transformers_config import empty_model

    model_map = map_model(Path(path))
    model = empty_model(model_map.hyperparameters, dtype or torch.float32, attention)
    for name, parameter in model_map.parameters.items():
        values = torch.from_numpy(read_parameter(model_map, parameter))
        owner, _, leaf = name.rpartition(".")
        moved = torch.nn.Parameter(values.to(device, dtype or torch.float32))
        setattr(model.get_submodule(owner), leaf, moved)
    model.tie_weights()
    model.to(device)
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta:
            raise EngineError(
                f"{path}: transformers has a tensor {name!r} that the file does not fill",
                hint="install the version of transformers that kldcloud[qad] asks for",
            )
    return model.eval()


def read_parameter(model_map: ModelMap, parameter: ModelParameter) -> F4:
    """One parameter as the model has it: dequantised, rows and sums put right.

    Returns:
        float32 of ``parameter.shape``, memory of its own.
    """
    tensor = parameter.tensor
    stored = np.asarray(read_tensor_bytes(model_map.path, tensor))
    values = dequantize(stored, tensor.type_name).reshape(parameter.shape)
    if parameter.scale is not None:
        values *= dequantize(read_tensor_bytes(model_map.path, parameter.scale), "F32")
    if parameter.file_rows is not None:
        values = values[parameter.file_rows]
    if parameter.added:
        values -= np.float32(parameter.added)
    return values
