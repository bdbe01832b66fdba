"""Quantising a model while transformers loads it: what a recipe's name means.

Each keeps weights only in fewer bits, and runs on CPUs and GPUs alike; embeddings and the output
head stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
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


def check_recipe(
    path: Path,
    model: Any,  # noqa: ANN401 - a module of torch
    name: str,
    device: str,
) -> None:
    """See that a recipe takes all linear layers of a model.

    Args:
        path: of the model's folder.
        model: it, or one of the same shapes that has no memory.
        name: the recipe's.
        device: cpu or cuda.

    Raises:
        UserError: one of them has a width that the library does not take.
    """
    recipe = RECIPES[name]
    columns = recipe.group if recipe.whole_groups else 1
    rows = recipe.block if recipe.block and device == "cpu" and _packs_for_bfloat16() else 1
    for layer, (outputs, inputs) in linear_layers(model).items():
        if inputs % columns or outputs % rows:
            what = f"inputs by {columns}" if inputs % columns else f"outputs by {rows} on this CPU"
            raise UserError(
                f"{path}: {name} cannot quantise {layer}.weight ({outputs} x {inputs}): "
                f"{recipe.library} divides {what}",
                hint="take a recipe that takes any width: torchao-int8, torchao-fp8 or bnb-int8",
            )


def linear_layers(model: Any) -> dict[str, tuple[int, int]]:  # noqa: ANN401
    """The layers whose weights recipes quantise, by name: outputs and inputs."""
    import torch

    head = model.get_output_embeddings()
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def quantised_share(model: Any) -> float:  # noqa: ANN401
    """Of the matrices between embedding and head, how much of their weights recipes quantise."""
    import torch

    layers = [module for module in model.modules() if not isinstance(module, torch.nn.Embedding)]
    head = model.get_output_embeddings()
    matrices = {
        id(each): each.numel()
        for module in layers
        if module is not head
        for each in module.parameters(recurse=False)
        if each.ndim > 1
    }
    linear = sum(outputs * inputs for outputs, inputs in linear_layers(model).values())
    return linear / max(1, sum(map(int, matrices.values())))


def _packs_for_bfloat16() -> bool:
    try:
        from bitsandbytes.functional import has_avx512bf16
    except ImportError:  # what needs it says so
        return False
    return bool(has_avx512bf16())


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
