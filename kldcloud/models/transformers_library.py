"""transformers and torch: imported when first needed, quiet, and named for reports."""

from __future__ import annotations

import logging
import os
import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Final

from kldcloud.errors import UserError

_DECIDE: Final = ("torch", "transformers", "triton")


@cache
def transformers() -> ModuleType:
    """The module.

    Raises:
        UserError: it, or torch, is not installed.
    """
    quieten()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch  # noqa: F401 - named in the error if it is missing
            import transformers as module
    except ImportError as error:
        missing = error.name or "transformers"
        raise UserError(
            f"a model in safetensors needs {missing}, which is not installed",
            hint="pip install 'kldcloud[hf]'",
        ) from error
    module.utils.logging.disable_progress_bar()
    return module  # type: ignore[no-any-return]  # an untyped package


def quieten() -> None:
    """Have torch, transformers and what they bring say nothing on their own; imports none of them.

    They warn of what is missing for GPUs, of internals, and of each layer that they round.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("torchao", "torch.utils._pytree", "bitsandbytes", "accelerate.big_modeling"):
        logging.getLogger(name).setLevel(logging.ERROR)


def library_versions() -> dict[str, str]:
    """Versions of what decides numbers, read without importing it; empty where nothing is there."""
    found = {}
    for name in _DECIDE:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def cuda_device() -> str:
    """The name of the GPU that torch would use; empty if there is none."""
    transformers()
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""


def cpu_instructions() -> str:
    """The widest vector instructions that torch's CPU kernels use, such as AVX512."""
    import torch

    return str(torch.backends.cpu.get_cpu_capability())
