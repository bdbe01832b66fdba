"""Which tensor of a GGUF is which parameter of the transformers model, and how they differ.

Names on the left are llama.cpp's (`llama-arch.cpp`), those on the right transformers'. Two things
differ besides names: llama.cpp rotates pairs of neighbours in the llama architecture, so the rows
of its queries and keys are interleaved; and it stores Gemma's norms with their 1 added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from kldcloud.errors import FormatError
from kldcloud.models.dequantize import DEQUANTIZED
from kldcloud.models.gguf_header import GgufHeader, TensorInfo, read_gguf_header
from kldcloud.models.regular_file import DOWNLOAD_AGAIN
from kldcloud.qad.hyperparameters import ROPE_DIVISORS, Hyperparameters, read_hyperparameters

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ModelParameter:
    """One parameter of the torch model and the tensor that holds it.

    Attributes:
        name: in transformers, such as ``"model.layers.0.self_attn.q_proj.weight"``.
        tensor: in the file.
        shape: in torch's order: ``(rows, columns)`` or ``(elements,)``.
        file_rows: int64 [rows], for each of the model's rows which row of the file it is, so that
            ``model = file[file_rows]`` and ``file[file_rows] = model``; None where they agree.
        added: what the file's values have on top of the model's.
        scale: the tensor of one number that the stored values are multiplied by; NVFP4 has one.
    """

    name: str
    tensor: TensorInfo
    shape: tuple[int, ...]
    file_rows: Rows | None
    added: float
    scale: TensorInfo | None = None


@dataclass(frozen=True, slots=True)
class ModelMap:
    """A GGUF as a transformers model.

    Attributes:
        path: the file.
        hyperparameters: its numbers.
        parameters: by transformers name. A tied head is not there: it is the embedding.
    """

    path: Path
    hyperparameters: Hyperparameters
    parameters: Mapping[str, ModelParameter]

    @property
    def head(self) -> str:
        """Name of the parameter that makes logits."""
        return EMBEDDING if self.hyperparameters.tied else HEAD


EMBEDDING: Final = "model.embed_tokens.weight"
HEAD: Final = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor that each block has; its shape in torch's order, as letters of `_sizes`."""

    tensor: str
    parameter: str
    shape: str


@dataclass(frozen=True, slots=True)
class _Architecture:
    block: tuple[_Entry, ...]
    interleaved: bool = False
    norms_added: float = 0.0


_ATTENTION = (
    _Entry("attn_norm.weight", "input_layernorm.weight", "d"),
    _Entry("attn_q.weight", "self_attn.q_proj.weight", "qd"),
    _Entry("attn_k.weight", "self_attn.k_proj.weight", "kd"),
    _Entry("attn_v.weight", "self_attn.v_proj.weight", "kd"),
    _Entry("attn_output.weight", "self_attn.o_proj.weight", "dq"),
)
_BIASES = (
    _Entry("attn_q.bias", "self_attn.q_proj.bias", "q"),
    _Entry("attn_k.bias", "self_attn.k_proj.bias", "k"),
    _Entry("attn_v.bias", "self_attn.v_proj.bias", "k"),
)
_HEAD_NORMS = (
    _Entry("attn_q_norm.weight", "self_attn.q_norm.weight", "h"),
    _Entry("attn_k_norm.weight", "self_attn.k_norm.weight", "h"),
)
_FEED_FORWARD = (
    _Entry("ffn_gate.weight", "mlp.gate_proj.weight", "fd"),
    _Entry("ffn_up.weight", "mlp.up_proj.weight", "fd"),
    _Entry("ffn_down.weight", "mlp.down_proj.weight", "df"),
)
_FEED_FORWARD_NORM = (_Entry("ffn_norm.weight", "post_attention_layernorm.weight", "d"),)
_GEMMA_NORMS = (
    _Entry("post_attention_norm.weight", "post_attention_layernorm.weight", "d"),
    _Entry("ffn_norm.weight", "pre_feedforward_layernorm.weight", "d"),
    _Entry("post_ffw_norm.weight", "post_feedforward_layernorm.weight", "d"),
)
_LLAMA_BLOCK = _ATTENTION + _FEED_FORWARD_NORM + _FEED_FORWARD

ARCHITECTURES: Final[Mapping[str, _Architecture]] = MappingProxyType(
    {
        "llama": _Architecture(_LLAMA_BLOCK, interleaved=True),
        "qwen2": _Architecture(_LLAMA_BLOCK + _BIASES),
        "qwen3": _Architecture(_LLAMA_BLOCK + _HEAD_NORMS),
        "gemma3": _Architecture(
            _ATTENTION + _HEAD_NORMS + _GEMMA_NORMS + _FEED_FORWARD, norms_added=1.0
        ),
    }
)
"""By ``general.architecture``."""


def map_model(path: Path, *, any_type: bool = False) -> ModelMap:
    """Match every tensor of a GGUF with a parameter of the transformers model.

    Nothing but the header (and a few rotary numbers) is read, and what the returned shapes can
    cost is bounded by the file's own size.

    Args:
        path: of the file.
        any_type: whether its tensors may be of types that torch cannot be given, for a file that
            is converted before it is loaded.

    Raises:
        UserError: there is no such file.
        FormatError: it is damaged, of another architecture, lacks a tensor, has one of another
            shape or of a type that `dequantize` does not know, or has one that the transformers
            model has no place for.
    """
    header = read_gguf_header(path)
    if header.architecture not in ARCHITECTURES:
        raise FormatError(
            f"{path}: cannot train the architecture {header.architecture[:60]!r}",
            hint=f"use a model of {', '.join(ARCHITECTURES)}",
        )
    numbers = read_hyperparameters(path, header)
    parameters = {item.name: item for item in _parameters(path, header, numbers)}
    if not any_type:
        for item in parameters.values():
            _check_type(path, item.tensor)
    used = {item.tensor.name for item in parameters.values()}
    used |= {item.scale.name for item in parameters.values() if item.scale is not None}
    if numbers.rope_divisors is not None:
        used.add(ROPE_DIVISORS)
    for name in header.tensors:
        if name not in used:
            raise FormatError(
                f"{path}: has a tensor {name!r}, for which transformers' "
                f"{header.architecture} has no place",
                hint="use the plain dense model of this architecture",
            )
    return ModelMap(path, numbers, MappingProxyType(parameters))


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


@dataclass(frozen=True, slots=True)
class Place:
    """Where one parameter of a model of given numbers goes in a GGUF.

    Attributes:
        tensor: its name there.
        parameter: its name in transformers.
        shape: in torch's order.
        heads: rows are interleaved within so many heads, as `interleaved_rows` has it; 0 for none.
        added: what the file's values have on top of the model's.
    """

    tensor: str
    parameter: str
    shape: tuple[int, ...]
    heads: int
    added: float


def places(numbers: Hyperparameters) -> Iterator[Place]:
    """Each parameter of a model, once."""
    architecture = ARCHITECTURES[numbers.architecture]
    sizes = {
        "d": numbers.width,
        "f": numbers.feed_forward,
        "h": numbers.head_width,
        "k": numbers.kv_heads * numbers.head_width,
        "q": numbers.heads * numbers.head_width,
        "v": numbers.vocabulary,
    }

    def place(tensor: str, name: str, letters: str) -> Place:
        shape = tuple(sizes[letter] for letter in letters)
        turned = tensor.endswith((".attn_q.weight", ".attn_k.weight"))
        heads = shape[0] // numbers.head_width if architecture.interleaved and turned else 0
        added = architecture.norms_added if name.endswith("norm.weight") else 0.0
        return Place(tensor, name, shape, heads, added)

    yield place("token_embd.weight", EMBEDDING, "vd")
    for layer in range(numbers.layers):
        for entry in architecture.block:
            yield place(
                f"blk.{layer}.{entry.tensor}",
                f"model.layers.{layer}.{entry.parameter}",
                entry.shape,
            )
    yield place("output_norm.weight", "model.norm.weight", "d")
    if not numbers.tied:
        yield place("output.weight", HEAD, "vd")


def _parameters(
    path: Path, header: GgufHeader, numbers: Hyperparameters
) -> Iterator[ModelParameter]:
    orders: dict[int, Rows] = {}
    for each in places(numbers):
        tensor = _tensor(path, header, each.tensor, each.shape)
        rows = None
        if each.heads:
            # Only now is the row count one that the file has bytes for.
            if each.heads not in orders:
                orders[each.heads] = interleaved_rows(each.heads, numbers.head_width)
            rows = orders[each.heads]
        scale = _scale(path, header, tensor)
        yield ModelParameter(each.parameter, tensor, each.shape, rows, each.added, scale)


def _tensor(path: Path, header: GgufHeader, name: str, shape: tuple[int, ...]) -> TensorInfo:
    tensor = header.tensors.get(name)
    if tensor is None:
        raise FormatError(
            f"{path}: has no tensor {name!r}, which {header.architecture} needs",
            hint="use the plain dense model of this architecture, or download it again",
        )
    if tensor.shape[::-1] != shape:
        raise FormatError(
            f"{path}: tensor {name!r} is {list(tensor.shape[::-1])}, its metadata says "
            f"{list(shape)}",
            hint=DOWNLOAD_AGAIN,
        )
    return tensor


def _check_type(path: Path, tensor: TensorInfo) -> None:
    if tensor.type_name not in DEQUANTIZED:
        raise FormatError(
            f"{path}: tensor {tensor.name!r} is {tensor.type_name}, which torch cannot be given",
            hint=f"use a file whose tensors are {', '.join(DEQUANTIZED)}",
        )


def scale_name(tensor: str) -> str:
    """The tensor beside an NVFP4 one that llama.cpp multiplies its products by."""
    return f"{tensor.removesuffix('.weight')}.scale"


def _scale(path: Path, header: GgufHeader, tensor: TensorInfo) -> TensorInfo | None:
    found = header.tensors.get(scale_name(tensor.name))
    if found is None or tensor.type_name != "NVFP4":
        return None
    if found.type_name != "F32" or found.elements != 1:
        raise FormatError(f"{path}: {found.name!r} is not one F32 number", hint=DOWNLOAD_AGAIN)
    return found


def interleaved_rows(heads: int, head_width: int) -> Rows:
    """Rows of llama.cpp's interleaved queries or keys in transformers' order.

    Within a head, llama.cpp turns rows 2i and 2i+1 together; transformers turns i and
    i + head_width/2.

    Returns:
        int64 ``[heads * head_width]``.
    """
    pairs = np.arange(heads * head_width).reshape(heads, head_width // 2, 2)
    return pairs.swapaxes(1, 2).reshape(-1)
