"""Folders of quantised safetensors as their makers lay them out, and what their numbers mean.

Each maker takes a weight's name and its matrix [outputs, inputs], and returns what is stored for it
and the matrix that this stands for, computed in float64 from codes that were never packed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

Tensors = Mapping[str, torch.Tensor]
Made = tuple[Tensors, torch.Tensor]
Maker = Callable[[str, torch.Tensor], Made]
Change = Callable[[dict[str, torch.Tensor]], object]
Codes = npt.NDArray[np.int64]

AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
"""The columns of a word's nibbles, low ones first, by llm-awq's packing code."""


def rewritten(
    folder: Path,
    target: Path,
    convert: Callable[[str, torch.Tensor], Tensors],
    *,
    every: bool = False,
) -> Path:
    """The same model with the matrices of its layers, or every tensor, written otherwise."""
    shutil.copytree(folder, target)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(target / "model.safetensors").items():
        layer = tensor.ndim == 2 and ".layers." in name
        tensors |= convert(name, tensor) if layer or every else {name: tensor.clone()}
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        target / "model.safetensors",
        metadata={"format": "pt"},
    )
    return target


def configured(folder: Path, settings: Mapping[str, Any]) -> Path:
    """A folder whose configuration says how its weights are quantised."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": dict(settings)}
    path.write_text(json.dumps(config))
    return folder


def changed(folder: Path, change: Change) -> Path:
    """The same folder with other tensors."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def both(
    folder: Path, target: Path, maker: Maker, settings: Mapping[str, Any]
) -> tuple[Path, Path]:
    """A folder quantised by a maker, and one with what it means written out."""
    quantised = rewritten(folder, target / "quantised", lambda *each: maker(*each)[0])
    exact = rewritten(folder, target / "exact", lambda name, each: {name: maker(name, each)[1]})
    return configured(quantised, settings), exact


def fp8_blocks(
    name: str, weight: torch.Tensor, block: int = 128, suffix: str = "_scale_inv"
) -> Made:
    """E4M3 with a scale for each square block, the last of which are cut off."""
    rows, columns = (-(-size // block) for size in weight.shape)
    scales = torch.empty(rows, columns)
    codes = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    meant = torch.empty_like(weight, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            at = np.s_[
                row * block : (row + 1) * block,
                column * block : (column + 1) * block,
            ]
            scale = weight[at].abs().max() / 448
            scales[row, column] = scale
            codes[at] = (weight[at] / scale).to(torch.float8_e4m3fn)
            meant[at] = codes[at].double() * scale.double()
    return {name: codes, name + suffix: scales}, meant.float()


def gptq(
    name: str,
    weight: torch.Tensor,
    *,
    bits: int = 4,
    group: int = 64,
    shuffled: bool = False,
    offset: int = 1,
) -> Made:
    """Codes with zero points, which are stored less `offset`; `shuffled` is act-order."""
    groups = np.arange(weight.shape[1]) // group
    if shuffled:
        groups = np.random.default_rng(len(groups)).permutation(groups)
    codes, zeros, scales, meant = _with_zero_points(weight, groups, bits)
    layer = name.removesuffix(".weight")
    stored = {
        f"{layer}.qweight": packed(codes.T, bits).T,
        f"{layer}.qzeros": packed(zeros - offset, bits),
        f"{layer}.scales": torch.from_numpy(scales),
        f"{layer}.g_idx": torch.from_numpy(groups.astype(np.int32)),
    }
    return stored, meant


def awq(name: str, weight: torch.Tensor, *, group: int = 64) -> Made:
    """Codes and zero points along the outputs, in AWQ's order."""
    groups = np.arange(weight.shape[1]) // group
    codes, zeros, scales, meant = _with_zero_points(weight, groups, 4)
    layer = name.removesuffix(".weight")
    stored = {
        f"{layer}.qweight": packed(codes, 4, AWQ_COLUMNS),
        f"{layer}.qzeros": packed(zeros, 4, AWQ_COLUMNS),
        f"{layer}.scales": torch.from_numpy(scales),
    }
    return stored, meant


def int4_groups(name: str, weight: torch.Tensor, *, asymmetric: bool, group: int = 64) -> Made:
    """compressed-tensors' pack-quantized: codes -8..7, stored from 0 on, along the inputs."""
    rows, columns = weight.shape
    groups = weight.reshape(rows, columns // group, group).double().numpy()
    scales = np.abs(groups).max(2).astype(np.float32) / np.float32(7)
    zeros = np.zeros(scales.shape, np.int64)
    if asymmetric:
        zeros = np.random.default_rng(columns).integers(-3, 4, scales.shape)
    wide = scales.astype(np.float64)[..., None]
    codes = np.clip(np.round(groups / wide).astype(np.int64) + zeros[..., None], -8, 7)
    meant = torch.from_numpy(((codes - zeros[..., None]) * wide).reshape(rows, columns))
    layer = name.removesuffix(".weight")
    stored = {
        f"{layer}.weight_packed": packed(codes.reshape(rows, columns) + 8, 4),
        f"{layer}.weight_scale": torch.from_numpy(scales),
        f"{layer}.weight_shape": torch.tensor([rows, columns]),
    }
    if asymmetric:
        stored[f"{layer}.weight_zero_point"] = packed(zeros.T + 8, 4).T
    return stored, meant.float()


def int8_rows(name: str, weight: torch.Tensor) -> Made:
    """compressed-tensors' int-quantized: a scale for each row."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    codes = torch.round(weight / scale).to(torch.int8)
    return {name: codes, f"{name}_scale": scale}, (codes.double() * scale.double()).float()


def packed(codes: Codes, bits: int, order: Sequence[int] | None = None) -> torch.Tensor:
    """int32 [rows, columns * bits / 32]: each word's codes from its low bits on."""
    many = 32 // bits
    words = np.zeros((len(codes), codes.shape[1] // many), np.uint32)
    for place, column in enumerate(order or range(many)):
        words |= codes[:, column::many].astype(np.uint32) << np.uint32(bits * place)
    return torch.from_numpy(words.view(np.int32))


def _with_zero_points(
    weight: torch.Tensor, groups: npt.NDArray[np.int64], bits: int
) -> tuple[Codes, Codes, npt.NDArray[np.float16], torch.Tensor]:
    """Codes [inputs, outputs], zero points and scales [groups, outputs], and what they mean."""
    columns = weight.double().numpy().T
    most = 2**bits - 1
    low, high = (
        np.stack([extreme(columns[groups == g], axis=0) for g in range(groups.max() + 1)])
        for extreme in (np.min, np.max)
    )
    scales = ((high - low) / most).astype(np.float16)
    wide = scales.astype(np.float64)
    zeros = np.clip(np.round(-low / wide), 1, most).astype(np.int64)
    codes = np.clip(np.round(columns / wide[groups]) + zeros[groups], 0, most).astype(np.int64)
    meant = (codes - zeros[groups]) * wide[groups]
    return codes, zeros, scales, torch.from_numpy(meant.T.astype(np.float32))
