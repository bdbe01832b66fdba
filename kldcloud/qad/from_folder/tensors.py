"""The weights of a model folder as tensors of a GGUF: in their own dtype, in llama.cpp's order.

Matrices keep every bit. Vectors (norms and biases) become float32, which llama.cpp computes them
in and which holds every value of the other types; to Gemma's norms their 1 is added in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kldcloud.models.dequantize import dequantize
from kldcloud.models.model_folder import ModelFolder
from kldcloud.models.safetensors_header import (
    StoredTensor,
    read_safetensors_header,
    read_stored_bytes,
)
from kldcloud.qad.architectures import EMBEDDING, HEAD, Place, interleaved_rows, places
from kldcloud.qad.from_folder.refusals import refused_model
from kldcloud.qad.gguf_retype import NewTensor
from kldcloud.qad.hyperparameters import ROPE_DIVISORS, Hyperparameters

_WIDTHS: Final = {"F32": 4, "F16": 2, "BF16": 2}
"""Bytes of one number, by a dtype's name, which safetensors and ggml have in common."""
_FOLLOWS: Final = ".rotary_emb.inv_freq"
"""Older Llama checkpoints keep what their configuration says too."""
_PORTION: Final = 1 << 26


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor of a folder, and which file has it."""

    file: Path
    tensor: StoredTensor


def folder_tensors(folder: ModelFolder, numbers: Hyperparameters) -> list[NewTensor]:
    """All tensors of a model, to be read when they are written.

    Raises:
        FormatError: one is missing, of another shape or type, or has no place in the model.
    """
    stored = {
        name: _Stored(file, tensor)
        for file in folder.weight_files
        for name, tensor in read_safetensors_header(file).tensors.items()
        if not name.endswith(_FOLLOWS)
    }
    if numbers.tied and HEAD in stored and EMBEDDING in stored:
        if not _are_equal(stored[HEAD], stored[EMBEDDING]):
            raise refused_model(
                folder.path, f"says that its head is its embedding, and has another as {HEAD}"
            )
        del stored[HEAD]
    tensors = [
        _tensor(folder, place, stored.pop(place.parameter, None), numbers)
        for place in places(numbers)
    ]
    for name in stored:
        raise refused_model(
            folder.path,
            f"has a tensor {name[:80]!r}, for which {numbers.architecture} has no place",
        )
    if numbers.rope_divisors is not None:
        values = np.array(numbers.rope_divisors, np.float32)
        tensors.append(NewTensor(ROPE_DIVISORS, values.shape, "F32", lambda: values))
    return tensors


def main_type(tensors: list[NewTensor]) -> str:
    """The type that most bytes of a file are of."""
    sizes: dict[str, int] = {}
    for each in tensors:
        sizes[each.type_name] = sizes.get(each.type_name, 0) + each.nbytes
    return max(sizes, key=lambda name: sizes[name])


def _tensor(
    folder: ModelFolder, place: Place, found: _Stored | None, numbers: Hyperparameters
) -> NewTensor:
    if found is None:
        raise refused_model(folder.path, f"has no tensor {place.parameter!r}")
    tensor = found.tensor
    if tensor.shape != place.shape:
        raise refused_model(
            folder.path,
            f"{place.parameter} is {list(tensor.shape)}, its config.json says {list(place.shape)}",
        )
    if tensor.dtype not in _WIDTHS:
        kinds = ", ".join(_WIDTHS)
        raise refused_model(folder.path, f"{place.parameter} is {tensor.dtype}, not {kinds}")
    shape = place.shape[::-1]
    if len(shape) == 1:
        return NewTensor(place.tensor, shape, "F32", partial(_vector, found, place.added))
    rows = partial(_rows, found, place.heads, numbers.head_width)
    return NewTensor(place.tensor, shape, tensor.dtype, rows)


def _vector(found: _Stored, added: float) -> npt.NDArray[np.float32]:
    values = dequantize(np.asarray(_bytes(found)), found.tensor.dtype)
    return values + np.float32(added) if added else values


def _rows(found: _Stored, heads: int, head_width: int) -> npt.NDArray[Any]:
    rows = np.asarray(_bytes(found)).reshape(found.tensor.shape[0], -1)
    if not heads:
        return rows
    turned = np.empty_like(rows)
    turned[interleaved_rows(heads, head_width)] = rows
    return turned


def _are_equal(one: _Stored, other: _Stored) -> bool:
    if (one.tensor.dtype, one.tensor.shape) != (other.tensor.dtype, other.tensor.shape):
        return False
    return all(
        np.array_equal(left, right)
        for left, right in zip(_portions(one), _portions(other), strict=True)
    )


def _portions(found: _Stored) -> Iterator[npt.NDArray[np.uint8]]:
    data = _bytes(found)
    for start in range(0, len(data), _PORTION):
        yield np.asarray(data[start : start + _PORTION])


def _bytes(found: _Stored) -> npt.NDArray[np.uint8]:
    return read_stored_bytes(found.file, found.tensor)
