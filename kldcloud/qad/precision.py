"""What training computes in, and what of its models is kept in memory for that.

In bfloat16 the products do: linear layers and attention in the forward pass and the backward one,
and logits and their gradient in the loss, all added up in float32. A weight that trains stays
float32 and is quantised in float32 before it is rounded, so that a step of any size reaches it and
the file has what the forward pass had; AdamW's averages, norms and the residual stream are float32
as well. What never changes is rounded once and takes half the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from kldcloud.qad.student import QuantizedEmbedding, QuantizedLinear

COMPUTED_IN: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {"float32": torch.float32, "bfloat16": torch.bfloat16}
)
"""By what a job calls it."""


class WidenedEmbedding(nn.Embedding):
    """An embedding whose rows leave in float32, where the residual stream begins."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        rows = functional.embedding(input, self.weight).float()
        scale = getattr(self, "embed_scale", None)  # Gemma's
        return rows if scale is None else rows * scale


def narrow(model: Any) -> None:  # noqa: ANN401 - a transformers model
    """Round the frozen matrices of a model to bfloat16, in place: linear layers, embedding, head.

    What trains or is quantised in the forward pass stays float32, and so do norms and biases.
    """
    for module in model.modules():
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            continue
        if isinstance(module, nn.Linear | nn.Embedding) and not module.weight.requires_grad:
            # The parameter stays the same object: a tied head is rounded with its embedding.
            module.weight.data = module.weight.data.to(torch.bfloat16)
            if isinstance(module, nn.Embedding):
                module.__class__ = WidenedEmbedding


def recompute(model: Any) -> None:  # noqa: ANN401 - a transformers model
    """Have a layer's activations computed again in the backward pass, in place.

    transformers does so in training mode alone, which changes nothing else in these architectures:
    their configuration, made here, has no dropout.
    """
    model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": False, "preserve_rng_state": False}
    )
    model.train()
