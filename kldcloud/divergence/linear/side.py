"""One model's side of a comparison: the states that enter its output head, and logits in tiles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kldcloud.errors import FormatError

_HALVES = (torch.bfloat16, torch.float16)
_DTYPES = (*_HALVES, torch.float32)


@dataclass(frozen=True, slots=True, eq=False)
class LinearSide:
    """What a model's logits are made of: ``cap * tanh(scale * (states @ weight.T + bias) / cap)``.

    That order is transformers' (5.17): Cohere multiplies by `logit_scale`, Granite divides by
    `logits_scaling`, Falcon-H1 multiplies by `lm_head_multiplier`, each right after the head;
    Gemma 2, 3, 3n and 4 cap by `final_logit_softcapping`. MiniCPM3 divides the states themselves:
    that is a scale too. No family there has both a scale and a cap.

    Attributes:
        states: float32, bfloat16 or float16 ``[n, d]``, after the final norm.
        weight: any of these dtypes ``[V, d]``, on the same device.
        bias: ``[V]``, or None.
        softcap: the cap, or None.
        scale: a factor of all logits, or None.
    """

    states: Tensor
    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float | None = None

    @property
    def rows(self) -> int:
        return int(self.states.shape[0])

    @property
    def vocabulary(self) -> int:
        return int(self.weight.shape[0])

    @property
    def width(self) -> int:
        return int(self.weight.shape[1])

    def checked(self, name: str, vocabulary: int | None) -> LinearSide:
        """The same, its head cut to the first `vocabulary` tokens.

        Args:
            name: of this side, for messages.
            vocabulary: None for all of them.

        Raises:
            FormatError: shapes, dtypes or devices disagree, or there are fewer tokens.
        """
        states, weight, bias = self.states, self.weight, self.bias
        if states.ndim != 2 or weight.ndim != 2 or states.shape[1] != weight.shape[1]:  # noqa: PLR2004 -- matrices
            raise FormatError(
                f"{name} states {tuple(states.shape)} do not fit its head {tuple(weight.shape)}"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise FormatError(
                f"{name} head has {len(weight)} tokens, its bias {tuple(bias.shape)} values"
            )
        if states.dtype not in _DTYPES or weight.dtype not in _DTYPES:
            raise FormatError(
                f"{name} states are {states.dtype}, its head {weight.dtype}",
                hint="use float32, bfloat16 or float16",
            )
        if len({each.device for each in (states, weight, bias) if each is not None}) > 1:
            raise FormatError(f"{name} states and head are on two devices")
        if vocabulary is None:
            return self
        if len(weight) < vocabulary:
            raise FormatError(f"{name} head has {len(weight)} tokens, {vocabulary} are wanted")
        cut = bias if bias is None else bias[:vocabulary]
        return replace(self, weight=weight[:vocabulary], bias=cut)

    def select(self, rows: slice | Tensor) -> LinearSide:
        """Some of the rows."""
        return replace(self, states=self.states[rows])

    @property
    def on_tensor_cores(self) -> bool:
        """Whether products read half-precision numbers as they are."""
        halves = self.states.dtype == self.weight.dtype and self.states.dtype in _HALVES
        return halves and self.states.is_cuda

    @property
    def widened(self) -> int:
        """float32 values that each token of a tile takes besides its logits."""
        return 0 if self.on_tensor_cores or self.weight.dtype == torch.float32 else self.width

    def ready(self) -> LinearSide:
        """The same, its states in the dtype of the product."""
        return self if self.on_tensor_cores else replace(self, states=self.states.float())

    def logits(self, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Logits of the tokens ``start..stop``, float32 ``[n, stop - start]``.

        Half-precision products accumulate in float32 and are not rounded; where a processor has no
        such product (every CPU), the tile of the head is widened. Call it within
        `exact_products`, and on a `ready` side if it is called often.

        Args:
            start: first token.
            stop: the token after the last.
            out: of that shape, to be filled; by default a new tensor.
        """
        weight = self.weight[start:stop]
        if self.on_tensor_cores:
            logits = torch.mm(self.states, weight.T, out_dtype=torch.float32, out=out)
        else:
            logits = torch.mm(self.states.float(), weight.float().T, out=out)
        if self.bias is not None:
            logits += self.bias[start:stop]
        if self.scale is not None:
            logits *= self.scale
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits


@contextmanager
def exact_products() -> Iterator[None]:
    """A context in which products are as exact as their inputs, and nothing else has changed after.

    float32 stays float32 (no TF32, no bfloat16 thirds), and half-precision products add up in
    float32, pieces of a split sum too. The settings are the process's: threads share them.
    """
    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    precisions = cuda.fp32_precision, cpu.fp32_precision
    flags = (
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_reduced_precision_reduction",
        "allow_fp16_accumulation",
    )
    before = {flag: getattr(cuda, flag) for flag in flags}
    older = _older_setting()
    try:
        # NVIDIA's containers allow TF32 by the older setting, and where it says other than the
        # newer ones, torch refuses every product.
        torch.set_float32_matmul_precision("highest")
        cuda.fp32_precision = cpu.fp32_precision = "ieee"
        for flag in flags:
            setattr(cuda, flag, False)
        yield
    finally:
        torch.set_float32_matmul_precision(older)
        cuda.fp32_precision, cpu.fp32_precision = precisions
        for flag, value in before.items():
            setattr(cuda, flag, value)


def _older_setting() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it is not told where a newer one has been set lower
        return "highest"
