"""What a method of quantising needs before transformers runs it: a GPU, a package, a choice."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Final

from kldcloud.errors import UserError
from kldcloud.models.folder_config import quantization_settings
from kldcloud.models.model_folder import ModelFolder
from kldcloud.models.transformers_library import cuda_device, transformers

DEQUANTIZED: Final = ("awq", "fp8", "gptq", "mxfp4")
"""Methods whose weights `dequantized_folder` writes out if it is told to."""

_OF_CODES: Final[Mapping[str, tuple[str, tuple[int, int]]]] = {
    "fp8": ("FP8", (8, 9)),
    "mxfp4": ("FP4", (7, 5)),
    "mxfp8": ("FP8", (8, 9)),
}
"""Methods whose products are of codes, on GPUs of this compute capability; transformers leaves them
for their weights' alone, without a word, where there is none."""
_OF_ONE_VERSION: Final = "kernels"
"""A package of which each version of transformers takes a few."""
_PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors",),
    "fp8": ("kernels",),
    "gptq": ("gptqmodel", "optimum"),
    "mxfp4": ("kernels", "triton"),
    "mxfp8": ("kernels",),
    "torchao": ("torchao",),
}


def check_method(folder: ModelFolder, device: str, *, dequantize: bool) -> None:
    """See that transformers would run a folder by the method that it was quantised by.

    Args:
        folder: the model.
        device: cpu or cuda.
        dequantize: whether its weights are written out first.

    Raises:
        UserError: it would not, or would compute something else without saying so.
    """
    method = folder.quantization
    if method is None or (dequantize and method in DEQUANTIZED):
        return
    choice = (
        "engine.transformers.dequantize: true, for its weights alone"
        if method in DEQUANTIZED
        else ""
    )
    kind, least = _OF_CODES.get(method, ("", (0, 0)))
    if kind and not _multiplies_codes(device, least):
        raise UserError(
            f"{folder.path}: quant_method {method} multiplies in {kind}, which needs a GPU of "
            f"compute capability {least[0]}.{least[1]}",
            hint=f"run it on one, or set {choice}" if choice else "run it on one",
        )
    missing = [each for each in _PACKAGES.get(method, ()) if not _is_there(each)]
    if missing:
        names = ", ".join(map(_requirement, missing))
        hint = f"add packages: [{names}] to the cluster file, or pip install them"
        raise UserError(
            f"{folder.path}: quant_method {method} needs {names}, which is not installed",
            hint=f"{hint}; or set {choice}" if choice else hint,
        )
    _check_known(folder, method)


def unpacked_to(folder: ModelFolder) -> str | None:
    """The dtype to which a method unpacks weights whatever it is asked; None if it heeds that."""
    if folder.quantization != "compressed-tensors":
        return None
    said = quantization_settings(folder.config) or {}
    groups = said.get("config_groups")
    parts = [said, *(groups.values() if isinstance(groups, dict) else ())]
    formats = {each.get("format") for each in parts if isinstance(each, dict)}
    # Its `unpack_fp4_from_uint8` makes bfloat16 (compressed-tensors 0.20.0).
    return "bfloat16" if "nvfp4-pack-quantized" in formats else None


def packages_of(method: str) -> str:
    """The packages that run a method, with the versions that are installed; empty if none is."""
    found = []
    for package in _PACKAGES.get(method, (method,)):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def _multiplies_codes(device: str, least: tuple[int, int]) -> bool:
    if device == "cpu":
        return False
    import torch

    return not cuda_device() or torch.cuda.get_device_capability() >= least


def _is_there(package: str) -> bool:
    if package == _OF_ONE_VERSION:
        transformers()
        from transformers.utils import is_kernels_available

        return bool(is_kernels_available())
    return find_spec(package.replace("-", "_")) is not None


def _requirement(package: str) -> str:
    """What pip is to be told."""
    if package != _OF_ONE_VERSION:
        return package
    from transformers.utils.import_utils import KERNELS_MIN_VERSION

    return f"{package}=={KERNELS_MIN_VERSION}"


def _check_known(folder: ModelFolder, method: str) -> None:
    """A method that transformers does not know: it would take the codes for weights."""
    library = transformers()
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    if method not in AUTO_QUANTIZER_MAPPING and method != "bitsandbytes":
        raise UserError(
            f"{folder.path}: transformers {library.__version__} has nothing for "
            f"quant_method {method!r}",
            hint="install a version that has, or take another checkpoint",
        )
