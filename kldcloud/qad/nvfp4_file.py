"""The NVFP4 student as a GGUF that llama.cpp runs: ggml's type 40, and a scale beside each tensor.

llama.cpp multiplies the products of ``blk.0.attn_q.weight`` by the number in ``blk.0.attn_q.scale``
in the architectures whose graphs ask for it; in others it reads that number and forgets it.
Quantising a teacher makes such a file; a trained student's has the same shape, so `export` puts
other blocks and other scales into it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from kldcloud.errors import FormatError
from kldcloud.qad.architectures import ModelMap, ModelParameter, map_model, scale_name
from kldcloud.qad.formats import nvfp4
from kldcloud.qad.gguf_retype import NewTensor, retype_gguf
from kldcloud.qad.gguf_rewrite import verify_export
from kldcloud.qad.nvfp4_layers import fused_groups
from kldcloud.qad.torch_model import read_parameter
from kldcloud.spec.quants import FTYPES

RUN_BY_LLAMA_CPP: Final = ("llama", "qwen3")
"""Architectures that llama-cpp-python 0.3.36 multiplies by their scales, of those trained here."""

F4 = npt.NDArray[np.float32]


def quantize_to_nvfp4(teacher: Path, target: Path) -> int:
    """Write the teacher with the matrices of its layers in NVFP4, rounded to nearest.

    The matrices of one group (see `fused_groups`) are held together, and nothing else.

    Args:
        teacher: a GGUF.
        target: the new file; it appears only if it says what `nvfp4.fake_quantize` computes.

    Returns:
        How many weights were compared with that.

    Raises:
        FormatError: the teacher cannot be read, its widths do not allow NVFP4, or llama.cpp would
            compute something else.
        EngineError: a weight is not finite.
        StoreError: no room for the file.
    """
    model = map_model(teacher)
    architecture = model.hyperparameters.architecture
    if architecture not in RUN_BY_LLAMA_CPP:
        raise FormatError(
            f"{teacher}: llama.cpp leaves NVFP4's tensor scales out of {architecture} models",
            hint=f"use a model of {', '.join(RUN_BY_LLAMA_CPP)}, or another format",
        )
    scales = dict(_scales(model))
    compared = 0

    def check(part: Path) -> None:
        nonlocal compared
        compared = verify_export(part, _expected(model, scales))

    tensors = [each for name in scales for each in _tensors(model, name, scales[name])]
    retype_gguf(teacher, target, tensors, FTYPES["NVFP4"], check=check)
    return compared


def _scales(model: ModelMap) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensor scale of each matrix, by name."""
    for names in fused_groups(model):
        scale = nvfp4.shared_scale(*(_weight(model, name) for name in names))
        yield from ((name, scale) for name in names)


def _tensors(model: ModelMap, name: str, scale: torch.Tensor) -> Iterator[NewTensor]:
    parameter = model.parameters[name]
    tensor = parameter.tensor

    def blocks() -> npt.NDArray[np.uint8]:
        return in_file_order(parameter, _weight(model, name), scale)

    yield NewTensor(tensor.name, tensor.shape, "NVFP4", blocks)
    yield NewTensor(scale_name(tensor.name), (1,), "F32", partial(_number, scale))


def _expected(
    model: ModelMap, scales: dict[str, torch.Tensor]
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for name, scale in scales.items():
        parameter = model.parameters[name]
        values = nvfp4.fake_quantize(_weight(model, name), scale).numpy()
        yield parameter.tensor.name, rows_in_file(parameter, values)


def in_file_order(
    parameter: ModelParameter, weight: torch.Tensor, scale: torch.Tensor
) -> npt.NDArray[np.uint8]:
    """The blocks of a matrix with the rows as the file has them: uint8 ``[bytes]``.

    Raises:
        EngineError: a weight is not finite.
    """
    stored = torch.from_numpy(rows_in_file(parameter, weight.numpy()))
    return nvfp4.pack(stored, scale).gguf_blocks()


def rows_in_file(parameter: ModelParameter, values: F4) -> F4:
    """Rows of the model in the order of the file."""
    if parameter.file_rows is None:
        return values
    in_file = np.empty_like(values)
    in_file[parameter.file_rows] = values
    return in_file


def _weight(model: ModelMap, name: str) -> torch.Tensor:
    return torch.from_numpy(read_parameter(model, model.parameters[name]))


def _number(scale: torch.Tensor) -> F4:
    return scale.float().numpy().reshape(1)
