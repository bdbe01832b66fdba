"""What FP8 kernels do to the states that enter a layer: E4M3 codes and their scales, as numbers.

Products of such numbers with dequantised weights are what an FP8 kernel computes, but for the order
of its sums. By a checkpoint's quantization_config, a scale belongs to

- the columns of a weight's block, in each token (`activation_scheme: dynamic`; `act_quant` of
  DeepSeek-V3's inference code, `per_token_group_quant_fp8` of vLLM and SGLang);
- a whole token, where a weight has one scale (dynamic; what vLLM's CUTLASS kernels take);
- a layer, and is stored with it (static).

`scale_fmt: ue8m0` (DeepSeek-V3.1) rounds dynamic scales up to powers of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from safetensors import safe_open
from torch.nn.functional import pad

from kldcloud.errors import FormatError
from kldcloud.models.dequantized_folder import FP8, fp8_block
from kldcloud.models.folder_config import quantization_settings
from kldcloud.models.model_folder import ModelFolder

_LARGEST: Final = 448.0
"""Of E4M3."""
_SCALE_NAMES: Final = ("activation_scale", "input_scale")
_WEIGHTS_ALONE: Final = "leave engine.transformers.round_activations out, for its weights alone"

Rounding = Callable[[torch.Tensor], torch.Tensor]


def round_activations(model: torch.nn.Module, folder: ModelFolder) -> None:
    """Have every layer whose weight a folder stores in FP8 round what enters it.

    Args:
        model: with these weights dequantised.
        folder: quantised by the method fp8.

    Raises:
        FormatError: such a weight is no linear layer's of the model (as experts' are not, which
            transformers runs as one tensor), or its settings or scales are not the method's.
    """
    layers = dict(model.named_modules())
    rounding = _rounding_of(folder)
    for tensor in folder.tensors:
        if tensor.dtype != FP8:
            continue
        name = tensor.name.removesuffix(".weight")
        layer = layers.get(name)
        if name == tensor.name or not isinstance(layer, torch.nn.Linear):
            raise _refused(
                folder, f"{tensor.name} is no linear layer's: what enters is not rounded"
            )
        layer.register_forward_pre_hook(partial(_rounded_input, rounding(name)))


def rounded_by_groups(
    states: torch.Tensor, group: int | None, *, powers_of_two: bool = False
) -> torch.Tensor:
    """States as E4M3 codes times the scales of their groups.

    Args:
        states: [..., d], of any float dtype, which the result has too.
        group: neighbours that share a scale; the last group may be smaller. None for all d.
        powers_of_two: whether scales are rounded up to one.
    """
    width = states.shape[-1]
    group = group or width
    wide = pad(states.float(), (0, -width % group))
    groups = wide.view(*wide.shape[:-1], -1, group)
    scales = groups.abs().amax(-1, keepdim=True) / _LARGEST
    if powers_of_two:
        scales = torch.exp2(torch.ceil(torch.log2(scales)))
    scales = torch.where(scales > 0, scales, 1.0)
    return _coded(groups, scales).flatten(-2)[..., :width].to(states.dtype)


def _coded(states: torch.Tensor, scales: torch.Tensor | float) -> torch.Tensor:
    codes = (states / scales).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
    return codes.float() * scales


def _rounded_input(rounding: Rounding, _: torch.nn.Module, given: tuple[Any, ...]) -> Any:  # noqa: ANN401
    return (rounding(given[0]), *given[1:])


def _rounding_of(folder: ModelFolder) -> Callable[[str], Rounding]:
    """How what enters a layer, given by name, is rounded."""
    settings = quantization_settings(folder.config) or {}
    scheme, form = settings.get("activation_scheme", "dynamic"), settings.get("scale_fmt")
    if form not in {None, "float", "ue8m0"}:
        raise _refused(folder, f"scale_fmt {str(form)[:40]!r} is not known here")
    if scheme == "static":
        stored = _stored_scales(folder)
        return lambda name: _by_stored_scale(folder, name, stored)
    if scheme != "dynamic":
        raise _refused(folder, f"activation_scheme {str(scheme)[:40]!r} is not known here")
    block = fp8_block(folder)
    each = partial(
        rounded_by_groups, group=block[1] if block else None, powers_of_two=form == "ue8m0"
    )
    return lambda _: each


def _by_stored_scale(folder: ModelFolder, layer: str, stored: dict[str, float]) -> Rounding:
    names = [f"{layer}.{each}" for each in _SCALE_NAMES]
    found = next((stored[name] for name in names if name in stored), None)
    if found is None:
        raise _refused(folder, f"activation_scheme is static, and there is no {names[0]}")
    if not (math.isfinite(found) and found > 0):
        raise _refused(folder, f"the scale of what enters {layer} is {found}")
    return lambda states: _coded(states.float(), found).to(states.dtype)


def _stored_scales(folder: ModelFolder) -> dict[str, float]:
    """Every single number of the files with the name of such a scale."""
    wanted = {
        each.name
        for each in folder.tensors
        if each.name.endswith(_SCALE_NAMES) and each.elements == 1
    }
    found = {}
    for path in folder.weight_files:
        with safe_open(path, framework="pt") as file:
            for name in wanted.intersection(file.keys()):
                found[name] = float(file.get_tensor(name).float().item())
    return found


def _refused(folder: ModelFolder, what: str) -> FormatError:
    return FormatError(f"{folder.path}: {what}", hint=_WEIGHTS_ALONE)
