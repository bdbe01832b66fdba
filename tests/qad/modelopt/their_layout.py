"""A folder in the layout of Model Optimizer's exporter, from floats, with numpy alone.

Nothing of the package packs here: codes and block scales are the nearest entries of tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

F4 = npt.NDArray[np.float32]
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
_E4M3 = np.array(
    [(8 * (code >> 3 > 0) + (code & 7)) * 2.0 ** (max(code >> 3, 1) - 10) for code in range(0x7F)]
)
"""All E4M3 numbers from 0 to 448, by their bits."""


def nearest(table: npt.NDArray[Any], values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Indices of the nearest entries; of two as near, the even one."""
    above = np.clip(np.searchsorted(table, values), 1, len(table) - 1)
    below = above - 1
    to_low, to_high = values - table[below], table[above] - values
    upper = (to_high < to_low) | ((to_high == to_low) & (above % 2 == 0))
    return np.where(upper, above, below).astype(np.uint8)


def packed(matrix: F4, whole: np.float32) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Codes, two in a byte, and the bits of block scales."""
    blocks = matrix.astype(np.float64).reshape(len(matrix), -1, 16)
    scales = nearest(_E4M3, np.abs(blocks).max(axis=2) / 6 / whole)
    divided = blocks / (_E4M3[scales] * whole)[..., None]
    codes = nearest(_E2M1, np.clip(np.abs(divided), 0, 6)) | (divided < 0).astype(np.uint8) << 3
    rows = codes.reshape(len(matrix), -1)
    return rows[:, ::2] | rows[:, 1::2] << 4, scales


def dequantized(codes: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint8], whole: float) -> F4:
    """What these mean: float32 ``[rows, columns]``."""
    both = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)
    signed = np.where(both & 8, -_E2M1[both & 7], _E2M1[both & 7])
    product = signed * np.repeat(_E4M3[scales], 16, axis=1)
    return (product.astype(np.float32) * np.float32(whole)).astype(np.float32)


def their_tensors(weights: Mapping[str, F4], *, activations: bool) -> dict[str, torch.Tensor]:
    """The tensors of an export: matrices of layers in NVFP4, the rest in bfloat16."""
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        rounded = torch.from_numpy(np.ascontiguousarray(weight)).bfloat16()
        if not name.endswith("_proj.weight"):
            tensors[name] = rounded
            continue
        group = [rounded, *(torch.from_numpy(weights[each]).bfloat16() for each in _beside(name))]
        whole = np.float32(max(float(each.abs().max()) for each in group) / (6 * 448))
        codes, scales = packed(rounded.float().numpy(), whole)
        tensors[name] = torch.from_numpy(codes)
        tensors[f"{name}_scale"] = torch.from_numpy(scales).view(torch.float8_e4m3fn)
        tensors[f"{name}_scale_2"] = torch.tensor(whole)
        if activations:
            module = name.removesuffix(".weight")
            tensors[f"{module}.input_scale"] = torch.tensor(0.01)
            if module.endswith(("k_proj", "v_proj")):
                tensors[f"{module}.{module[-6]}_scale"] = torch.tensor(0.02)
    return tensors


def _beside(name: str) -> Sequence[str]:
    """The matrices that share a tensor scale with one: the exporter has engines fuse them."""
    for group in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
        for each in group:
            if f".{each}." in name:
                return [name.replace(each, other) for other in group if other != each]
    return ()


def their_config(*, activations: bool) -> dict[str, Any]:
    """What config.json says under quantization_config."""
    numbers = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
    inputs = {"input_activations": numbers} if activations else {}
    return {
        "config_groups": {"group_0": {**inputs, "weights": numbers, "targets": ["Linear"]}},
        "ignore": ["lm_head"],
        "quant_algo": "NVFP4" if activations else "W4A16_NVFP4",
        "producer": {"name": "modelopt", "version": "0.46.0"},
        "quant_method": "modelopt",
    }


def write_their_folder(
    folder: Path, tensors: Mapping[str, torch.Tensor], *, activations: bool, files: int = 1
) -> None:
    """Write an export, its weights in one file or in several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"quantization_config": their_config(activations=activations)}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    if files == 1:
        save_file(dict(tensors), folder / "model.safetensors")
        return
    index = {}
    for number in range(files):
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        part = dict(list(tensors.items())[number::files])
        save_file(part, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
