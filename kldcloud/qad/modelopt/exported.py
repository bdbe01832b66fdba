"""What Model Optimizer exports, checked and read: a folder of safetensors that becomes a GGUF.

Layout of its "unified" Hugging Face checkpoint, by ``modelopt.torch.export`` and a folder that it
wrote: of each quantised matrix ``weight``, uint8 with the even column in the low four bits;
``weight_scale``, E4M3, one for 16 columns; ``weight_scale_2``, one float32 that both are multiplied
by; where activations are quantised ``input_scale``, and of an FP8 cache ``k_scale`` and
``v_scale``, which say nothing of weights. The rest is bfloat16. config.json says under
``quantization_config`` by which recipe.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from kldcloud.errors import FormatError
from kldcloud.models.folder_files import is_shard
from kldcloud.qad.architectures import EMBEDDING, HEAD, ModelMap, ModelParameter, map_model
from kldcloud.qad.formats.nvfp4 import BLOCK, PackedNvfp4
from kldcloud.qad.gguf_rewrite import rewrite_gguf, verify_export
from kldcloud.qad.modelopt.pinned import ALGORITHMS, VERSION
from kldcloud.qad.torch_model import read_parameter

F4 = npt.NDArray[np.float32]

_CONFIG, _INDEX, _ONE_FILE = "config.json", "model.safetensors.index.json", "model.safetensors"
_MOST_JSON: Final = 64 << 20
_MOST_FILES: Final = 4096
_LARGEST_SCALE: Final = 0x7E
"""The bits of 448; above are NaN and numbers below zero."""
_NOT_WEIGHTS: Final = (".input_scale", ".k_scale", ".v_scale")
_SOURCE: Final = f"it should be what Model Optimizer {VERSION} exports"


def student_gguf(init: Path, folder: Path, target: Path, *, activations: bool) -> int:
    """Write the student that a folder holds as a GGUF.

    Args:
        init: the teacher in NVFP4, as `nvfp4_file.quantize_to_nvfp4` makes it; it lends embedding,
            head and metadata, which training left alone.
        folder: the export.
        target: the new file; it appears only if it holds what the folder holds.
        activations: whether inputs of matrices were quantised too.

    Returns:
        How many weights were read back and compared.

    Raises:
        FormatError: the folder is none of Model Optimizer's, or not of this model; or embedding or
            head are not the teacher's.
        StoreError: no room for the file.
    """
    _check_config(folder, activations=activations)
    model = map_model(init)
    with _Folder(folder) as found:
        _check_names(found, model)
        written = [each for each in model.parameters.values() if each.name not in (EMBEDDING, HEAD)]
        for name in (EMBEDDING, HEAD):
            if name in found.names:
                _check_kept(found, model, name)
        compared = 0

        def check(part: Path) -> None:
            nonlocal compared
            expected = ((each.tensor.name, _values(found, each)) for each in written)
            compared = verify_export(part, expected)

        stored = (pair for each in written for pair in _stored(found, each))
        rewrite_gguf(init, target, stored, check=check)
    return compared


def published_files(folder: Path) -> list[Path]:
    """The files of an export that are of use elsewhere: all but the tokenizer of token ids."""
    with _Folder(folder) as found:
        files = set(found.files)
    extra = (_CONFIG, _INDEX, "generation_config.json", "hf_quant_config.json")
    return sorted(files | {folder / name for name in extra if (folder / name).is_file()})


@dataclass(frozen=True, slots=True)
class _Slice:
    file: Any
    path: Path


class _Folder:
    """The tensors of a folder, whichever file each of them is in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _weight_files(folder)
        self.names: dict[str, _Slice] = {}
        self._open: list[Any] = []

    def __enter__(self) -> Self:
        for path in self.files:
            try:
                # Its header is bounded, and its offsets are checked, by the package.
                file: Any = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise FormatError(f"{path}: no safetensors: {error}", hint=_SOURCE) from error
            self._open.append(file)
            names: list[str] = file.offset_keys()
            self.names |= {name: _Slice(file, path) for name in names}
        return self

    def __exit__(self, *error: object) -> None:
        self.names.clear()
        self._open.clear()

    def read(self, name: str, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor, which has the size that the model's own file allows it."""
        found = self.names.get(name)
        if found is None:
            raise FormatError(f"{self.folder}: has no tensor {name!r}", hint=_SOURCE)
        sliced = found.file.get_slice(name)
        is_of, has = sliced.get_dtype(), tuple(sliced.get_shape())
        if (is_of, has) != (dtype, shape):
            raise FormatError(
                f"{found.path}: {name!r} is {is_of} {list(has)}, not {dtype} {list(shape)}",
                hint=_SOURCE,
            )
        tensor: torch.Tensor = found.file.get_tensor(name)
        return tensor


def _weight_files(folder: Path) -> list[Path]:
    if not (folder / _INDEX).exists():
        return [folder / _ONE_FILE]
    index = _json(folder / _INDEX)
    places = index.get("weight_map")
    names = set(places.values()) if isinstance(places, dict) else set()
    if not names or not all(map(is_shard, names)) or len(names) > _MOST_FILES:
        raise FormatError(f"{folder / _INDEX}: does not say where tensors are", hint=_SOURCE)
    return sorted(folder / each for each in names)


def _json(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MOST_JSON:
            raise FormatError(f"{path}: is larger than {_MOST_JSON >> 20} MiB", hint=_SOURCE)
        found: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}: cannot be read as JSON: {error}", hint=_SOURCE) from error
    if not isinstance(found, dict):
        raise FormatError(f"{path}: is no JSON object", hint=_SOURCE)
    return found


def _check_config(folder: Path, *, activations: bool) -> None:
    found = _json(folder / _CONFIG).get("quantization_config")
    said = found if isinstance(found, dict) else {}
    groups = said.get("config_groups")
    group = groups.get("group_0") if isinstance(groups, dict) else None
    weights = group.get("weights") if isinstance(group, dict) else None
    size = weights.get("group_size") if isinstance(weights, dict) else None
    have = said.get("quant_method"), said.get("quant_algo"), size
    if have != ("modelopt", ALGORITHMS[activations], BLOCK):
        raise FormatError(
            f"{folder / _CONFIG}: its quantization_config is not that of"
            f" {ALGORITHMS[activations]} in groups of {BLOCK}",
            hint=_SOURCE,
        )


def _check_names(found: _Folder, model: ModelMap) -> None:
    """Refuse what would change the model's numbers and has no place in the GGUF."""
    known = {HEAD}  # where it is tied it may be there a second time
    for name, parameter in model.parameters.items():
        known.add(name)
        if parameter.scale is not None:
            known |= {f"{name}_scale", f"{name}_scale_2"}
    for name in found.names:
        if name not in known and not name.endswith(_NOT_WEIGHTS):
            raise FormatError(
                f"{found.folder}: has a tensor {name[:100]!r}, for which a GGUF has no place",
                hint=_SOURCE,
            )


def _check_kept(found: _Folder, model: ModelMap, name: str) -> None:
    """Refuse an embedding or head that training moved: the GGUF has the teacher's own."""
    parameter = model.parameters[model.head if name == HEAD else name]
    kept = torch.from_numpy(read_parameter(model, parameter)).to(torch.bfloat16)
    if not torch.equal(found.read(name, "BF16", parameter.shape), kept):
        raise FormatError(
            f"{found.folder}: {name} is not the teacher's, which was to stay as it was"
        )


def _stored(found: _Folder, parameter: ModelParameter) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    name = parameter.tensor.name
    if parameter.scale is None:
        yield name, _values(found, parameter)
        return
    packed = _packed(found, parameter)
    yield name, packed.gguf_blocks()
    yield parameter.scale.name, packed.tensor_scale.numpy().reshape(1)


def _values(found: _Folder, parameter: ModelParameter) -> F4:
    """What the GGUF is to say, in its own order."""
    if parameter.scale is not None:
        return _packed(found, parameter).dequantize().numpy()
    values = found.read(parameter.name, "BF16", parameter.shape).float()
    if not values.isfinite().all():
        raise FormatError(f"{found.folder}: a number of {parameter.name} is not finite")
    added: F4 = values.numpy() + np.float32(parameter.added)
    return added


def _packed(found: _Folder, parameter: ModelParameter) -> PackedNvfp4:
    """A matrix with its rows as the GGUF has them."""
    rows, columns = parameter.shape
    name = parameter.name
    weight = found.read(name, "U8", (rows, columns // 2))
    scale = found.read(f"{name}_scale", "F8_E4M3", (rows, columns // BLOCK))
    whole = found.read(f"{name}_scale_2", "F32", ())
    if not (whole.isfinite() and whole > 0) or scale.view(torch.uint8).max() > _LARGEST_SCALE:
        raise FormatError(f"{found.folder}: a scale of {name} is not finite, or below zero")
    if parameter.file_rows is not None:
        in_file = torch.from_numpy(np.argsort(parameter.file_rows))
        # One byte is indexed like another; not every torch can index E4M3.
        weight = weight[in_file]
        scale = scale.view(torch.uint8)[in_file].view(torch.float8_e4m3fn)
    return PackedNvfp4(weight, scale, whole)
