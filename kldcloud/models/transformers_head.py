"""The output head of a transformers model, and what the model does to its product."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from kldcloud.staging.head import NOTHING_AFTER, AfterHead, OutputHead

if TYPE_CHECKING:
    import torch

    from kldcloud.divergence.linear.side import LinearSide

TYPE_NAMES: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""torch's dtypes as ggml calls them."""
_FACTORS: Final = ("logit_scale", "lm_head_multiplier")
_SCALING: Final = "logits_scaling"
"""Divided by, except in models of these types: one multiplies by it, one divides states by it."""
_SCALED_UP: Final = ("hyperclovax",)
_SCALED_BEFORE: Final = ("minicpm3",)
_CAPS: Final = ("final_logit_softcapping", "logits_soft_cap")
_TILE_BYTES: Final = 256 << 20
"""Of one float32 tile of logits on a GPU: large enough for its products to run at full speed."""


def catcher(head: Any) -> Any:  # noqa: ANN401 - a class that needs torch
    """A module that stands where a head was: it keeps its input, and makes next to nothing."""
    import torch

    class Catcher(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[torch.Tensor] = []
            # Mamba gives its head what the head's weight is of.
            self.weight = getattr(head, "weight", None)

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            self.seen.append(states)
            return states[..., :1]

        def taken(self) -> list[torch.Tensor]:
            """The inputs since the last call."""
            seen, self.seen = self.seen, []
            return seen

    return Catcher()


def after_head(config: Any) -> AfterHead:  # noqa: ANN401 - one class a family
    """What a model's configuration says of its logits.

    Cohere and Falcon-H1 multiply them, Granite divides by `logits_scaling`; Gemma caps softly.
    """
    text = config.get_text_config()
    factors = [*_FACTORS, *([_SCALING] if text.model_type in _SCALED_UP else [])]
    factor = math.prod(_numbers(text, factors))
    if text.model_type not in (*_SCALED_UP, *_SCALED_BEFORE):
        factor /= math.prod(_numbers(text, [_SCALING]))
    cap = next(iter(_numbers(text, _CAPS)), None)
    if factor == 1 and cap is None:
        return NOTHING_AFTER
    return AfterHead(factor, cap)


def _numbers(config: Any, names: Iterable[str]) -> list[float]:  # noqa: ANN401
    """What a configuration has by some names, other than zero."""
    found = (getattr(config, name, None) for name in names)
    return [float(each) for each in found if isinstance(each, int | float) and each]


def is_plain(head: Any) -> bool:  # noqa: ANN401 - a module of torch
    """Whether a head is a matrix of ordinary numbers, which a stage can keep."""
    import torch

    # Quantised heads are classes of their own, or hold a tensor that is one.
    weight = getattr(head, "weight", None)
    return (
        type(head) is torch.nn.Linear
        and type(weight) is torch.nn.Parameter
        # Where it waits in the machine's memory, the module alone knows how to bring it.
        and weight.device.type != "meta"
        and str(weight.dtype).removeprefix("torch.") in TYPE_NAMES
    )


def plain_head(head: Any, vocabulary: int, after: AfterHead) -> OutputHead | None:  # noqa: ANN401
    """A plain head on the CPU, in the very memory that the model has it in; else None."""
    import torch

    if not is_plain(head) or head.weight.device.type != "cpu":
        return None
    weight = head.weight.detach()[:vocabulary].contiguous()
    kind = TYPE_NAMES[str(weight.dtype).removeprefix("torch.")]
    bias = None
    if head.bias is not None:
        bias = head.bias.detach()[:vocabulary].float().numpy()
    data = weight.view(torch.uint8).numpy().reshape(-1)
    return OutputHead(data, kind, int(weight.shape[1]), vocabulary, bias, after)


def linear_side(
    head: Any,  # noqa: ANN401
    states: torch.Tensor,
    vocabulary: int,
    after: AfterHead,
) -> LinearSide:
    """What a plain head makes logits of, for the kernel that does without them."""
    from kldcloud.divergence.linear.side import LinearSide

    weight, bias = head.weight.detach()[:vocabulary], head.bias
    if bias is not None:
        bias = bias.detach()[:vocabulary]
    return LinearSide(states, weight, bias, after.softcap, after.scale)


def own_logits(
    head: Any,  # noqa: ANN401
    states: torch.Tensor,
    vocabulary: int,
    after: AfterHead,
) -> torch.Tensor:
    """float32 [rows, V] of states, where the head is; its product in float32 if it is plain."""
    import torch

    from kldcloud.divergence.linear.side import exact_products

    if is_plain(head):
        side = linear_side(head, states, vocabulary, after).ready()
        made = torch.empty((len(states), vocabulary), dtype=torch.float32, device=states.device)
        columns = max(1, _TILE_BYTES // (4 * max(len(states), states.shape[1])))
        with exact_products():
            for at in range(0, vocabulary, columns):
                stop = min(at + columns, vocabulary)
                made[:, at:stop] = side.logits(at, stop)
        return made
    logits: torch.Tensor = head(states)[:, :vocabulary].float()
    if after.scale != 1:
        logits *= after.scale
    if after.softcap is not None:
        logits = torch.tanh(logits / after.softcap) * after.softcap
    return logits
