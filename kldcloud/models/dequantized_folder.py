"""A folder of quantised safetensors as the model that its numbers say, each weight written out.

For methods whose own kernels want a GPU or a package. Which tensors belong together, and their
types and shapes, are checked by the headers before a number is read. What comes out is at most
eight numbers for four bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import torch
from safetensors import safe_open

from kldcloud.errors import FormatError
from kldcloud.models.dequantized_weights import (
    awq_weight,
    fp8_weight,
    gptq_weight,
    mxfp4_weight,
)
from kldcloud.models.folder_config import quantization_settings
from kldcloud.models.model_folder import ModelFolder
from kldcloud.models.safetensors_header import StoredTensor

_SCALES: Final = ("BF16", "F16", "F32")
FP8: Final = "F8_E4M3"
_MATRIX: Final = 2
_WORD: Final = 32
_GPTQ_BITS: Final = (4, 8)
_ZERO_OFFSETS: Final = {"gptq": 1, "gptq_v2": 0}
_MXFP4_OCTETS: Final = 16
_OF_ACTIVATIONS: Final = ("activation_scale", "input_scale")
_INSTEAD: Final = "take another checkpoint, or leave engine.transformers.dequantize out"
_AWQ_BITS: Final = 4
_BITS: Final = ("bits", "w_bit")
_GROUP_SIZES: Final = ("group_size", "q_group_size")
_OF_SOME_LAYERS: Final = ("dynamic", "extra_config")
"""Where packers say that some layers differ from the others."""

Named = Iterator[tuple[str, torch.Tensor]]


def dequantized_tensors(folder: ModelFolder, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """All tensors of a folder, with the names that they have where nothing is quantised.

    Args:
        folder: quantised by a method of `transformers_methods.DEQUANTIZED`.
        dtype: that weights are rounded to, from float32, if they were quantised; other tensors
            come as they are stored.

    Raises:
        FormatError: its tensors or settings are not the method's, or a variant's that is not read
            here.
    """
    with ExitStack() as stack:
        files = [
            stack.enter_context(safe_open(path, framework="pt")) for path in folder.weight_files
        ]
        stored = _Stored(
            folder,
            quantization_settings(folder.config) or {},
            {tensor.name: tensor for tensor in folder.tensors},
            {name: file for file in files for name in file.keys()},  # noqa: SIM118 - no mapping
            dtype,
        )
        return dict(_READERS[folder.quantization or ""](stored))


@dataclass(frozen=True, slots=True)
class _Stored:
    """What a folder holds.

    Attributes:
        folder: it.
        settings: its quantization_config.
        tensors: headers by name.
        files: by the names of their tensors.
        dtype: of what is dequantised.
    """

    folder: ModelFolder
    settings: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    files: Mapping[str, Any]
    dtype: torch.dtype

    def is_plain(self, name: str) -> bool:
        return self.tensors[name].dtype != FP8

    def read(self, name: str) -> torch.Tensor:
        found: torch.Tensor = self.files[name].get_tensor(name)
        return found

    def expected(
        self, name: str, dtypes: tuple[str, ...], shape: tuple[int | None, ...]
    ) -> tuple[int, ...]:
        """The shape of a tensor that must be there, where None stands for any size but zero."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise self.refused(f"has no tensor {name}")
        fits = len(tensor.shape) == len(shape) and all(
            has == wanted if wanted is not None else has
            for has, wanted in zip(tensor.shape, shape, strict=True)
        )
        if tensor.dtype not in dtypes or not fits:
            wanted = " x ".join("any" if each is None else str(each) for each in shape)
            its = " x ".join(map(str, tensor.shape))
            raise self.refused(
                f"{name} is {tensor.dtype} {its}, not {' or '.join(dtypes)} {wanted}"
            )
        return tensor.shape

    def check_stated(self, layer: str, *, bits: int, inputs: int, groups: int) -> None:
        """See that a layer is packed as the settings say that all are."""
        if any(self.settings.get(key) for key in _OF_SOME_LAYERS):
            return
        said, size = self._whole(_BITS), self._whole(_GROUP_SIZES)
        if said not in (None, bits):
            what = f"{layer}.qweight is packed in {bits} bits, and quantization_config says {said}"
        elif size is not None and groups != (-(-inputs // size) if size > 0 else 1):
            what = (
                f"{layer}.scales has {groups} groups for {inputs} inputs, and "
                f"quantization_config says group_size {size}"
            )
        else:
            return
        hint = "take the config.json that belongs to these weights"
        raise FormatError(f"{self.folder.path}: {what}", hint=hint)

    def _whole(self, keys: tuple[str, ...]) -> int | None:
        return next((each for key in keys if type(each := self.settings.get(key)) is int), None)

    def refused(self, what: str) -> FormatError:
        return FormatError(f"{self.folder.path}: {what}", hint=_INSTEAD)


def fp8_block(folder: ModelFolder) -> tuple[int, int] | None:
    """Rows and columns that share a scale in an FP8 checkpoint; None where a whole matrix does.

    Raises:
        FormatError: its settings say neither.
    """
    found = (quantization_settings(folder.config) or {}).get("weight_block_size")
    if found is None:
        return None
    if (
        not isinstance(found, list)
        or len(found) != _MATRIX
        or not all(type(each) is int and 0 < each < 1 << 20 for each in found)
    ):
        raise FormatError(f"{folder.path}: weight_block_size is no pair of counts", hint=_INSTEAD)
    return found[0], found[1]


def _read_fp8(stored: _Stored) -> Named:
    block = fp8_block(stored.folder)
    for name, tensor in stored.tensors.items():
        weight = name.removesuffix("_scale_inv")
        if name.endswith(_OF_ACTIVATIONS):
            continue
        if weight != name:
            if weight not in stored.tensors or stored.is_plain(weight):
                raise stored.refused(f"{name} belongs to no weight in {FP8}")
        elif stored.is_plain(name):
            if tensor.dtype.startswith("F8"):
                raise stored.refused(f"{name} is in {tensor.dtype}, which is not read here")
            yield name, stored.read(name)
        else:
            yield name, _fp8_tensor(stored, tensor, block).to(stored.dtype)


def _fp8_tensor(
    stored: _Stored, tensor: StoredTensor, block: tuple[int, int] | None
) -> torch.Tensor:
    scale, shape = f"{tensor.name}_scale_inv", tensor.shape
    if len(shape) < _MATRIX or not tensor.elements:
        raise stored.refused(f"{tensor.name} is no matrix")
    if block is not None:
        cut = (-(-shape[-2] // block[0]), -(-shape[-1] // block[1]))
        stored.expected(scale, _SCALES, (*shape[:-2], *cut))
        return fp8_weight(stored.read(tensor.name), stored.read(scale), block)
    one = stored.tensors.get(scale)
    if one is None or one.elements != 1 or one.dtype not in _SCALES:
        raise stored.refused(f"{tensor.name} has not one scale in {' or '.join(_SCALES)}")
    return stored.read(tensor.name).float().mul_(stored.read(scale).float().reshape(()))


def _read_gptq(stored: _Stored) -> Named:
    form = str(stored.settings.get("checkpoint_format") or stored.settings.get("format") or "gptq")
    if form not in _ZERO_OFFSETS:
        raise stored.refused(f"GPTQ's format {form[:40]!r} is not read here")
    yield from _unpacked_layers(
        stored,
        ("qweight", "qzeros", "scales", "g_idx"),
        lambda layer: _gptq_tensor(stored, layer, _ZERO_OFFSETS[form]),
    )


def _gptq_tensor(stored: _Stored, layer: str, zero_offset: int) -> torch.Tensor:
    rows, outputs = stored.expected(f"{layer}.qweight", ("I32",), (None, None))
    groups, columns = stored.expected(f"{layer}.qzeros", ("I32",), (None, None))
    stored.expected(f"{layer}.scales", _SCALES, (groups, outputs))
    bits = _WORD * columns // outputs
    inputs = rows * _WORD // bits if bits in _GPTQ_BITS else 0
    if not inputs or bits * outputs != _WORD * columns:
        raise stored.refused(f"{layer} is not packed in {' or '.join(map(str, _GPTQ_BITS))} bits")
    stored.check_stated(layer, bits=bits, inputs=inputs, groups=groups)
    try:
        return gptq_weight(
            stored.read(f"{layer}.qweight"),
            stored.read(f"{layer}.qzeros"),
            stored.read(f"{layer}.scales"),
            _gptq_groups(stored, layer, inputs, groups),
            bits=bits,
            zero_offset=zero_offset,
        )
    except ValueError as error:
        raise stored.refused(f"{layer} {error}") from error


def _gptq_groups(stored: _Stored, layer: str, inputs: int, groups: int) -> torch.Tensor:
    """int64 [inputs]: the group of each."""
    name = f"{layer}.g_idx"
    if name not in stored.tensors:
        if inputs % groups:
            raise stored.refused(f"{layer} has {inputs} inputs in {groups} groups, and no g_idx")
        return torch.arange(inputs) // (inputs // groups)
    stored.expected(name, ("I32", "I64"), (inputs,))
    found = stored.read(name).long()
    if int(found.min()) < 0 or int(found.max()) >= groups:
        raise stored.refused(f"{name} names a group that is not there")
    return found


def _read_awq(stored: _Stored) -> Named:
    form = str(stored.settings.get("version") or stored.settings.get("format") or "gemm").lower()
    if form != "gemm":
        raise stored.refused(f"AWQ's version {form[:40]!r} is not read here")
    yield from _unpacked_layers(
        stored, ("qweight", "qzeros", "scales"), lambda layer: _awq_tensor(stored, layer)
    )


def _awq_tensor(stored: _Stored, layer: str) -> torch.Tensor:
    inputs, columns = stored.expected(f"{layer}.qweight", ("I32",), (None, None))
    groups, outputs = stored.expected(f"{layer}.scales", _SCALES, (None, 8 * columns))
    stored.expected(f"{layer}.qzeros", ("I32",), (groups, columns))
    if inputs % groups:
        raise stored.refused(f"{layer} has {inputs} inputs in {groups} groups of {outputs} outputs")
    stored.check_stated(layer, bits=_AWQ_BITS, inputs=inputs, groups=groups)
    return awq_weight(
        stored.read(f"{layer}.qweight"),
        stored.read(f"{layer}.qzeros"),
        stored.read(f"{layer}.scales"),
    )


def _read_mxfp4(stored: _Stored) -> Named:
    for name in stored.tensors:
        weight = name.removesuffix("_blocks")
        if weight != name:
            yield weight, _mxfp4_tensor(stored, weight).to(stored.dtype)
        elif not name.endswith("_scales"):
            yield name, stored.read(name)
        elif f"{name.removesuffix('_scales')}_blocks" not in stored.tensors:
            raise stored.refused(f"{name} belongs to no blocks of FP4")


def _mxfp4_tensor(stored: _Stored, weight: str) -> torch.Tensor:
    """[experts, inputs, outputs], as gpt-oss multiplies; stored with the inputs in groups."""
    blocks, scales = f"{weight}_blocks", f"{weight}_scales"
    shape = stored.expected(blocks, ("U8",), (None, None, None, _MXFP4_OCTETS))
    stored.expected(scales, ("U8",), shape[:-1])
    try:
        found = mxfp4_weight(stored.read(blocks), stored.read(scales))
    except ValueError as error:
        raise stored.refused(f"{scales} {error}") from error
    return found.transpose(1, 2).contiguous()


def _unpacked_layers(
    stored: _Stored, parts: tuple[str, ...], weight: Callable[[str], torch.Tensor]
) -> Named:
    """Every layer with a qweight as its weight, and every tensor that is no part of one."""
    layers = {name.removesuffix(".qweight") for name in stored.tensors if name.endswith(".qweight")}
    for name in stored.tensors:
        layer, _, part = name.rpartition(".")
        if layer not in layers or part not in parts:
            yield name, stored.read(name)
        elif part == "qweight":
            if f"{layer}.weight" in stored.tensors:
                raise stored.refused(f"has both {name} and {layer}.weight")
            yield f"{layer}.weight", weight(layer).to(stored.dtype)


_READERS: Final[Mapping[str, Callable[[_Stored], Named]]] = {
    "awq": _read_awq,
    "fp8": _read_fp8,
    "gptq": _read_gptq,
    "mxfp4": _read_mxfp4,
}
