"""An NVFP4 student as a folder of safetensors, in the layout "nvfp4-pack-quantized".

That is the layout of compressed-tensors, which transformers reads (a test has it do so) and vLLM
(benchmarks/nvfp4_vllm.py): for each matrix its packed codes, its block scales in E4M3, and the
inverse of its tensor scale. Everything else is stored float for float; a reader then rounds all to
the dtype that it computes in. A tokenizer's files belong beside them, and only the original's own
do: a GGUF's vocabulary does not say how that one splits text.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from kldcloud.errors import FormatError
from kldcloud.models.gguf_header import read_gguf_header
from kldcloud.qad.architectures import ModelMap, ModelParameter, map_model
from kldcloud.qad.nvfp4_layers import Nvfp4Inputs, fused_groups, input_formats, weight_formats
from kldcloud.qad.torch_model import read_parameter
from kldcloud.qad.whole_file import whole_file, written

F4 = npt.NDArray[np.float32]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FILES: Final = (CONFIG, WEIGHTS)

_LAYOUT: Final = "nvfp4-pack-quantized"
_COMPUTED_IN: Final = "bfloat16"
"""compressed-tensors unpacks weights to it, whatever a model is loaded as: transformers' products
of these with activations of another dtype fail."""
_DTYPES: Final = {"F16": torch.float16, "BF16": torch.bfloat16}
_TOKENS: Final = ("bos", "eos")
_RECIPROCAL: Final = 2.0**-21
"""The file has the inverse of a tensor scale: what is read is this near to what was trained."""


def export_hf(
    teacher: Path,
    weights: Mapping[str, torch.Tensor],
    folder: Path,
    inputs: Mapping[str, float] | None = None,
) -> int:
    """Write a student.

    Args:
        teacher: the GGUF that it was trained from.
        weights: trained parameters by transformers name, as a checkpoint has them.
        folder: gets config.json and model.safetensors; other files in it stay.
        inputs: the largest magnitude that enters each matrix, where activations are NVFP4 too.

    Returns:
        How many weights were read back and compared with what training used.

    Raises:
        FormatError: the teacher does not have these parameters, or the file does not hold what the
            training forward pass used.
        EngineError: a weight is not finite.
        StoreError: no room for the files.
    """
    model = map_model(teacher)
    for name, weight in weights.items():
        if name not in model.parameters or tuple(weight.shape) != model.parameters[name].shape:
            raise FormatError(f"{teacher}: has no parameter {name} of shape {tuple(weight.shape)}")
    trained = _Trained(model, weights)
    compared = 0

    def check(part: Path) -> None:
        nonlocal compared
        compared = _verify(part, trained)

    with whole_file(folder / WEIGHTS, check) as part, written(folder / WEIGHTS):
        save_file(dict(_tensors(trained, inputs or {})), part, metadata={"format": "pt"})
    quantization = _quantization(activations=bool(inputs))
    facts = {**folder_config(model), "dtype": _COMPUTED_IN, "quantization_config": quantization}
    write_config(folder, facts)
    return compared


def write_config(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write a folder's config.json.

    Raises:
        StoreError: no room for it.
    """
    with whole_file(folder / CONFIG) as part, written(folder / CONFIG):
        part.write_text(json.dumps(facts, indent=2) + "\n")


def copy_files(files: Iterable[Path], target: Path) -> None:
    """Copy files into a folder, each there once it is whole.

    Raises:
        StoreError: the target cannot be written.
    """
    for each in files:
        with whole_file(target / each.name) as part, written(target / each.name):
            shutil.copyfile(each, part)


class _Trained:
    """All parameters of the student: the trained ones, and the teacher's others."""

    def __init__(self, model: ModelMap, weights: Mapping[str, torch.Tensor]) -> None:
        self.model = model
        self._weights = weights
        self.matrices = tuple(name for names in fused_groups(model) for name in names)
        self.formats = weight_formats(model, self.find)

    def find(self, name: str) -> torch.Tensor:
        """One of them, float32 on the CPU."""
        if name in self._weights:
            return self._weights[name].float()
        return torch.from_numpy(read_parameter(self.model, self.model.parameters[name]))


def _tensors(trained: _Trained, inputs: Mapping[str, float]) -> Iterator[tuple[str, torch.Tensor]]:
    scales: Mapping[str, Nvfp4Inputs] = input_formats(inputs, "cpu")
    for name, parameter in trained.model.parameters.items():
        weight = trained.find(name)
        if name not in trained.formats:
            yield name, weight.to(stored_dtype(parameter))
            continue
        packed = trained.formats[name].pack(weight)
        module = name.removesuffix(".weight")
        yield f"{module}.weight_packed", packed.weight_packed
        yield f"{module}.weight_scale", packed.weight_scale
        yield f"{module}.weight_global_scale", packed.weight_global_scale
        if name in scales:
            yield f"{module}.input_global_scale", scales[name].tensor_scale.reciprocal().reshape(1)


def stored_dtype(parameter: ModelParameter) -> torch.dtype:
    """What safetensors keep a tensor as that a GGUF has float for float."""
    return _DTYPES.get(parameter.tensor.type_name, torch.float32)


def folder_config(model: ModelMap) -> Mapping[str, Any]:
    """The model's configuration as transformers reads it, of weights that are plain floats."""
    from kldcloud.qad.transformers_config import causal_class, transformers_config

    config = transformers_config(model.hyperparameters)
    facts: dict[str, Any] = config.to_dict()
    metadata = read_gguf_header(model.path).metadata
    for word in _TOKENS:
        token = metadata.get(f"tokenizer.ggml.{word}_token_id")
        facts[f"{word}_token_id"] = token if type(token) is int else None
    dtype = stored_dtype(next(iter(model.parameters.values())))
    return facts | {
        "architectures": [causal_class(model.hyperparameters)],
        "dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
    }


def _quantization(*, activations: bool) -> Mapping[str, Any]:
    """What compressed-tensors calls the schemes NVFP4A16 and NVFP4."""
    numbers = {
        "num_bits": 4,
        "type": "float",
        "symmetric": True,
        "strategy": "tensor_group",
        "group_size": 16,
        # Without it the package leaves the scales of activations unrounded (0.20.0).
        "scale_dtype": "torch.float8_e4m3fn",
    }
    # "local": a tensor scale from the file, scales of blocks as they come.
    seen = {**numbers, "dynamic": "local"} if activations else None
    group = {
        "targets": ["Linear"],
        "weights": {**numbers, "dynamic": False},
        "input_activations": seen,
        "output_activations": None,
        "format": _LAYOUT,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": _LAYOUT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


def _verify(path: Path, trained: _Trained) -> int:
    """Read the file as its layout says, with nothing of the code that packs."""
    compared = 0
    with safe_open(path, framework="pt") as file:
        for name, parameter in trained.model.parameters.items():
            weight = trained.find(name)
            if name in trained.formats:
                expected = trained.formats[name].fake_quantize(weight).numpy()
                found = _read(file, name.removesuffix(".weight"))
                near = _RECIPROCAL * np.abs(expected)
            else:
                expected = weight.numpy()
                found = file.get_tensor(name).float().numpy()
                near = np.zeros((), np.float32)
            # NaN is near nothing, so a weight that is none is refused too.
            if found.shape != parameter.shape or not (np.abs(found - expected) <= near).all():
                raise FormatError(
                    f"{path}: {name} does not hold what was trained",
                    hint="do not publish this folder; export the checkpoint again",
                )
            compared += expected.size
    return compared


def _read(file: Any, module: str) -> F4:  # noqa: ANN401
    packed = file.get_tensor(f"{module}.weight_packed").numpy()
    scale = file.get_tensor(f"{module}.weight_scale").float().numpy()
    inverse = file.get_tensor(f"{module}.weight_global_scale").numpy()
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
    levels = np.where(codes & 8, -magnitudes[codes & 7], magnitudes[codes & 7])
    values: F4 = levels * np.repeat(scale / inverse, 16, axis=1)
    return values
