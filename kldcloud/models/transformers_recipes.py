"""Quantising a model while transformers loads it: what a recipe's name means.

Each keeps weights only in fewer bits, and runs on CPUs and GPUs alike; embeddings and the output
head stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from kldcloud.errors import UserError
from kldcloud.spec.recipes import RECIPES, Recipe


def recipe_config(name: str) -> Any:  # noqa: ANN401 - transformers' configuration
    """The quantization_config that transformers takes.

    Raises:
        UserError: the library that quantises is not installed.
    """
    recipe = RECIPES[name]
    try:
        return _MAKERS[name]()
    except ImportError as error:
        raise UserError(
            f"{name} needs {recipe.library}, which is not installed",
            hint=f"pip install {recipe.library}",
        ) from error


def recipe_library(name: str) -> str:
    """The library that quantises, with its version: it decides numbers.

    Raises:
        UserError: it is not installed.
    """
    from importlib.metadata import PackageNotFoundError, version

    recipe: Recipe = RECIPES[name]
    try:
        return f"{recipe.library} {version(recipe.library)}"
    except PackageNotFoundError as error:
        raise UserError(
            f"{name} needs {recipe.library}, which is not installed",
            hint=f"pip install {recipe.library}",
        ) from error


def _torchao(maker: Callable[[Any], Any]) -> Any:  # noqa: ANN401 - untyped package
    from torchao import quantization
    from transformers import TorchAoConfig

    return TorchAoConfig(maker(quantization))


def _int4() -> Any:  # noqa: ANN401
    import torch
    from torchao.quantization.granularity import PerGroup

    return _torchao(
        lambda library: library.IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, "int4"),  # noqa: B009 - unknown to its type stubs
            granularity=PerGroup(RECIPES["torchao-int4"].group),
        )
    )


def _bitsandbytes(**settings: Any) -> Any:  # noqa: ANN401
    import bitsandbytes  # noqa: F401 - transformers would name another package if it is missing
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(bnb_4bit_compute_dtype=torch.float32, **settings)


_MAKERS: Final[Mapping[str, Callable[[], Any]]] = {
    "torchao-int8": lambda: _torchao(lambda library: library.Int8WeightOnlyConfig()),
    "torchao-int4": _int4,
    "torchao-fp8": lambda: _torchao(lambda library: library.Float8WeightOnlyConfig()),
    "bnb-int8": lambda: _bitsandbytes(load_in_8bit=True),
    "bnb-nf4": lambda: _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "bnb-fp4": lambda: _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
}
