"""A model made into a student: chosen weights quantised in every forward pass, the rest frozen.

The trained numbers stay real; the forward pass sees what their format makes of them, and the format
passes the gradient straight through. Parameters keep their transformers names and places, so that
checkpoints, FSDP and the exporter find them where they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from kldcloud.errors import UserError
from kldcloud.qad.loss import OutputHead

CODES, NORMS, HEAD = "codes", "norms", "head"
"""Names of the groups that can be trained."""


class WeightFormat(Protocol):
    """What a quantised tensor can hold, for one weight."""

    def fake_quantize(self, w: Tensor) -> Tensor:
        """The values that the file would hold for `w`; their gradient is that of `w` itself."""
        ...


class InputFormat(Protocol):
    """What the inputs of a quantised linear layer are rounded to."""

    def fake_quantize(self, x: Tensor) -> Tensor:
        """`x` as the layer sees it, of its type; the gradient is that of `x` itself."""
        ...


_NO_INPUTS: Final[Mapping[str, InputFormat]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Student:
    """A causal language model that trains through its formats.

    Attributes:
        model: the transformers model, changed in place.
        formats: by parameter name.
        groups: group name to its parameters by name; only what trains is there.
    """

    model: Any
    formats: Mapping[str, WeightFormat]
    groups: Mapping[str, Mapping[str, nn.Parameter]]


def make_student(
    model: Any,  # noqa: ANN401 - a transformers model
    formats: Mapping[str, WeightFormat],
    *,
    codes: bool = True,
    norms: bool = False,
    head: bool = False,
    inputs: Mapping[str, InputFormat] = _NO_INPUTS,
) -> Student:
    """Quantise chosen weights in the forward pass and freeze what does not train.

    Args:
        model: from `load_model`; changed in place.
        formats: by name of a linear layer's or the embedding's weight, as in
            ``"model.layers.0.mlp.up_proj.weight"``.
        codes: train the weights that have a format, but for the head.
        norms: train the norms' weights too.
        head: train the output head too; where it is tied that is the embedding as well.
        inputs: by name of a linear layer's weight that has a format; other layers see their
            inputs as they are.

    Raises:
        UserError: a format names no such weight, or that of a head that is not to be trained.
    """
    parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
    head_name = head_parameter(model)
    if head_name in formats and not head:
        raise UserError(f"{head_name}: has a format, but the head is frozen", hint="train the head")
    users = {name: _users(model, parameters.get(name), name) for name in formats}
    for name, weight_format in formats.items():
        for module, kind in users[name]:
            # Only the class changes: parameters, buffers and hooks stay those of this object.
            module.__class__ = kind
            module.weight_format = weight_format
            module.input_format = inputs.get(name)
    wanted = {
        CODES: [name for name in parameters if codes and name in formats and name != head_name],
        NORMS: [name for name in parameters if name.endswith("norm.weight") and norms],
        HEAD: [head_name] if head else [],
    }
    groups = {
        group: {name: parameters[name] for name in names}
        for group, names in wanted.items()
        if names
    }
    model.requires_grad_(False)
    for name in chain.from_iterable(wanted.values()):
        parameters[name].requires_grad_()
    return Student(model, dict(formats), groups)


def head_parameter(model: Any) -> str:  # noqa: ANN401
    """Name of the parameter that makes logits: a tied head goes by its embedding's name."""
    weight = model.get_output_embeddings().weight
    names: Iterator[str] = (name for name, item in model.named_parameters() if item is weight)
    return next(names)


def output_head(model: Any, dtype: torch.dtype | None = None) -> OutputHead:  # noqa: ANN401
    """What the loss needs of a model's end: a student's is quantised where it has a format.

    Args:
        model: a transformers model.
        dtype: of the head's weight; None for what it is kept in.
    """
    module = model.get_output_embeddings()
    weight = module.weight
    if isinstance(module, QuantizedLinear):
        weight = module.weight_format.fake_quantize(weight)
    return OutputHead(
        weight.to(dtype or weight.dtype), getattr(model.config, "final_logit_softcapping", None)
    )


def hidden_states(
    model: Any,  # noqa: ANN401
    tokens: Tensor,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """States that enter the output head, ``[batch, n, d]``, for int64 tokens ``[batch, n]``.

    Args:
        model: a transformers model.
        tokens: which.
        dtype: in bfloat16, linear layers and attention multiply in it, and the states are rounded
            to it in the end; None computes in what the parameters are kept in.
    """
    if dtype != torch.bfloat16:
        states: Tensor = model.model(input_ids=tokens, use_cache=False).last_hidden_state
        return states
    # Without autocast's cache: it would keep a copy of every frozen float32 weight.
    with torch.autocast(tokens.device.type, dtype, cache_enabled=False):
        states = model.model(input_ids=tokens, use_cache=False).last_hidden_state
    return states.to(dtype)


class QuantizedLinear(nn.Linear):
    """A linear layer whose weight is quantised before the activations' dtype rounds it."""

    weight_format: WeightFormat
    input_format: InputFormat | None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        if self.input_format is not None:
            input = self.input_format.fake_quantize(input)  # noqa: A001
        weight = self.weight_format.fake_quantize(self.weight)
        return functional.linear(input, weight.to(input.dtype), self.bias)


class QuantizedEmbedding(nn.Embedding):
    """An embedding whose table is quantised before rows are taken from it."""

    weight_format: WeightFormat

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        table = self.weight_format.fake_quantize(self.weight)
        rows = functional.embedding(input, table)
        scale = getattr(self, "embed_scale", None)  # Gemma's
        return rows if scale is None else rows * scale.to(rows.dtype)


def _users(
    model: nn.Module, parameter: nn.Parameter | None, name: str
) -> list[tuple[Any, type[nn.Module]]]:
    """The modules that compute with a parameter (two for a tied head), and what each becomes."""
    kinds = {nn.Linear: QuantizedLinear, nn.Embedding: QuantizedEmbedding}
    users = [
        (module, ours)
        for module in model.modules()
        for theirs, ours in kinds.items()
        if isinstance(module, theirs) and module.weight is parameter
    ]
    if not users:
        raise UserError(
            f"{name}: is no weight of a linear layer of this model, so it cannot have a format",
            hint="name parameters as transformers does: model.layers.0.mlp.up_proj.weight",
        )
    return users
