"""What the trainer asks of a student format, and the gradient that all formats share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from kldcloud.errors import EngineError


class StudentFormat(Protocol):
    """The weights that the exported file will have, as a function of those that are trained."""

    def fake_quantize(self, w: torch.Tensor) -> torch.Tensor:
        """Round `w` to what its export dequantises to; the gradient passes straight through.

        Args:
            w: float32, bfloat16 or float16 ``[rows, columns]``.

        Returns:
            float32 ``[rows, columns]``.
        """
        ...


def straight_through(
    w: torch.Tensor, rounded: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """``rounded(w)`` with the gradient of `w` itself (Bengio et al. 2013, arXiv:1308.3432).

    The gradient also passes where rounding clips: a weight that received none beyond the ends of
    its grid could never come back.

    Args:
        w: real-valued.
        rounded: returns a new tensor of the shape of `w`; called without autograd.
    """
    values: torch.Tensor = _StraightThrough.apply(w, rounded)  # type: ignore[no-untyped-call]
    return values


def refuse_diverged(w: torch.Tensor) -> None:
    """Let no weight that is not finite into a file.

    Raises:
        EngineError: there is one.
    """
    if not bool(torch.isfinite(w).all()):
        raise EngineError(
            "a trained weight is not a finite number",
            hint="training has diverged: go back to a checkpoint, with a lower learning rate",
        )


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        w: torch.Tensor,
        rounded: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        ctx.latent_dtype = w.dtype  # type: ignore[attr-defined]
        return rounded(w)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *grad_outputs: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        return grad_outputs[0].to(ctx.latent_dtype), None  # type: ignore[attr-defined]
