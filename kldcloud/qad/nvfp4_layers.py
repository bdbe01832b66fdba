"""Which matrices of a model an NVFP4 student has in NVFP4, and what each is rounded to.

Those of the layers: embedding, head, norms and biases stay as the teacher has them, as in NVIDIA's
recipe (arXiv:2601.20088). Engines multiply queries, keys and values as one matrix, and gate and up
as another, with one tensor scale each; so they share theirs here too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch

from kldcloud.errors import FormatError
from kldcloud.qad.architectures import ModelMap
from kldcloud.qad.formats import nvfp4

_FUSED: Final = (
    ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    ("self_attn.o_proj.weight",),
    ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    ("mlp.down_proj.weight",),
)


@dataclass(frozen=True, slots=True, eq=False)
class Nvfp4Weight:
    """One matrix as the student computes with it.

    Attributes:
        names: of this and all others that have the same tensor scale.
        weight: finds one by its name, as it is now: where a model is spread over processes, its
            layers' weights are other objects while they compute.
    """

    names: tuple[str, ...]
    weight: Callable[[str], torch.Tensor]

    def fake_quantize(self, w: torch.Tensor) -> torch.Tensor:
        """See `nvfp4.fake_quantize`; `w` is one of these weights."""
        return nvfp4.fake_quantize(w, self.tensor_scale())

    def pack(self, w: torch.Tensor) -> nvfp4.PackedNvfp4:
        """See `nvfp4.pack`; `w` is one of these weights."""
        return nvfp4.pack(w, self.tensor_scale())

    def tensor_scale(self) -> torch.Tensor:
        """That of all that share it."""
        return nvfp4.shared_scale(*map(self.weight, self.names))


@dataclass(frozen=True, slots=True, eq=False)
class Nvfp4Inputs:
    """The inputs of one matrix as a kernel for NVFP4 activations sees them.

    Attributes:
        tensor_scale: float32 ``[]``, fixed by calibration; block scales are each input's own.
    """

    tensor_scale: torch.Tensor

    def fake_quantize(self, x: torch.Tensor) -> torch.Tensor:
        """See `nvfp4.fake_quantize_activations`."""
        return nvfp4.fake_quantize_activations(x, self.tensor_scale)


def fused_groups(model: ModelMap) -> tuple[tuple[str, ...], ...]:
    """Names of all matrices that are NVFP4, those together that share a tensor scale.

    Raises:
        FormatError: a row of one does not consist of whole blocks; says which tensor.
    """
    groups = tuple(
        tuple(f"model.layers.{layer}.{each}" for each in names)
        for layer in range(model.hyperparameters.layers)
        for names in _FUSED
    )
    for name in (name for names in groups for name in names):
        parameter = model.parameters[name]
        if parameter.shape[1] % nvfp4.GGUF_BLOCK:
            raise FormatError(
                f"{model.path}: tensor {parameter.tensor.name!r} has rows of"
                f" {parameter.shape[1]:,}, no whole NVFP4 blocks of {nvfp4.GGUF_BLOCK}",
                hint="train another format: student: {init: {quantize: Q4_0}}",
            )
    return groups


def weight_formats(
    model: ModelMap, weight: Callable[[str], torch.Tensor]
) -> Mapping[str, Nvfp4Weight]:
    """The formats of all NVFP4 matrices.

    Args:
        model: of the teacher or of the student.
        weight: finds a matrix by its name, each time that it is computed with.

    Raises:
        FormatError: see `fused_groups`.
    """
    formats: dict[str, Nvfp4Weight] = {}
    for names in fused_groups(model):
        formats |= dict.fromkeys(names, Nvfp4Weight(names, weight))
    return formats


def input_formats(
    largest: Mapping[str, float], device: torch.device | str
) -> Mapping[str, Nvfp4Inputs]:
    """The formats of the inputs of these matrices, from the largest magnitude of each."""
    return {
        name: Nvfp4Inputs(nvfp4.shared_scale(torch.tensor(value, device=device)))
        for name, value in largest.items()
    }
