"""The distillation loss: KL divergence from teacher to student, made where the logits are.

KL(p || q) of next-token distributions p = softmax(teacher logits) and q = softmax(student logits),
temperature 1, in nats. Logits are made a few rows at a time from the states that enter each output
head, and so is the gradient, q - p times the student's head; logits of all tokens never exist.
Sums run in float32 or wider whatever the states are, and in a fixed order: the same states give the
same bits on one kind of CPU with one number of threads. On a GPU, where Triton is installed, one
kernel turns logits into divergence and gradient (`loss_triton`).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

_LOGITS_AT_ONCE = 1 << 22
"""Logits of one model in memory at a time: 16 MiB in float32, and three such buffers."""

_LOGITS_AT_ONCE_ON_GPU = 1 << 26
"""A GPU reads the whole head for each portion: only hundreds of rows are worth that."""

_TILE = 4096
"""Rows of a half-precision head that are widened at a time."""

_HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class OutputHead:
    """What turns states into logits.

    Attributes:
        weight: ``[V, d]``; a whole tensor, not one rank's part of it.
        softcap: c of ``c * tanh(logits / c)``, or None.
    """

    weight: Tensor
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class KldSum:
    """Divergence of some tokens, to be added to others' before dividing.

    Backward from ``total / count of the whole step`` weighs every token alike, however unevenly
    the step is cut into micro-batches.

    Attributes:
        total: scalar float64, the sum over tokens in nats; differentiable.
        count: tokens.
    """

    total: Tensor
    count: int


@dataclass(frozen=True, slots=True)
class TokenKld:
    """Each token's divergence, without gradient.

    Attributes:
        kld: float32 (float64 for float64 states) ``[N]``, in nats.
        same_top: bool ``[N]``, whether both models put the same token first.
    """

    kld: Tensor
    same_top: Tensor


def kld_sum(
    student: Tensor, student_head: OutputHead, teacher: Tensor, teacher_head: OutputHead
) -> KldSum:
    """Sum of KL(teacher || student) over tokens.

    The gradient reaches `student` and, if it requires one, the student's head; never the teacher.
    It is computed with the sum: memory is that of a few rows of logits, plus the gradients' own.

    Args:
        student: states that enter the student's head, ``[..., d]``, any floating dtype.
        student_head: of V tokens.
        teacher: states ``[..., d']`` of the same tokens; its width may be another.
        teacher_head: of the same V tokens.

    Raises:
        ValueError: the two do not have the same tokens, or the same vocabulary.
    """
    _check(student, student_head, teacher, teacher_head)
    states = student.reshape(-1, student.shape[-1])
    total = _KldSum.apply(  # type: ignore[no-untyped-call]
        states,
        student_head.weight,
        teacher.detach().reshape(-1, teacher.shape[-1]),
        teacher_head.weight.detach(),
        student_head.softcap,
        teacher_head.softcap,
    )
    return KldSum(total, len(states))


@torch.no_grad()
def token_kld(
    student: Tensor, student_head: OutputHead, teacher: Tensor, teacher_head: OutputHead
) -> TokenKld:
    """KL(teacher || student) and agreement of each token; arguments and errors of `kld_sum`.

    Returns:
        One entry a token, in the order of ``student.reshape(-1, d)``.
    """
    _check(student, student_head, teacher, teacher_head)
    ours = student.reshape(-1, student.shape[-1])
    theirs = teacher.reshape(-1, teacher.shape[-1])
    kld = torch.empty(len(ours), dtype=_wide(ours.dtype), device=ours.device)
    same_top = torch.empty(len(ours), dtype=torch.bool, device=ours.device)
    for rows in _portions(ours, student_head.weight):
        p = _logits(theirs[rows], teacher_head.weight, teacher_head.softcap).to(kld.dtype)
        q = _logits(ours[rows], student_head.weight, student_head.softcap)
        same_top[rows] = p.argmax(dim=-1) == q.argmax(dim=-1)
        kld[rows] = _divergence(p, q)
    return TokenKld(kld, same_top)


class _KldSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        student: Tensor,
        weight: Tensor,
        teacher: Tensor,
        teacher_weight: Tensor,
        softcap: float | None,
        teacher_softcap: float | None,
    ) -> Tensor:
        wide = _wide(student.dtype)
        to_states, to_weight = ctx.needs_input_grad[:2]
        states_grad = torch.empty(student.shape, dtype=wide, device=student.device)
        weight_grad = torch.zeros(
            weight.shape if to_weight else 0, dtype=wide, device=student.device
        )
        total = torch.zeros((), dtype=torch.float64, device=student.device)
        for rows in _portions(student, weight):
            p = _logits(teacher[rows], teacher_weight, teacher_softcap).to(wide)
            q = _logits(student[rows], weight, softcap)
            total += _to_gradient(p, q, softcap).sum(dtype=torch.float64)
            if not (to_states or to_weight):
                continue
            states_grad[rows] = _times(q, weight, student.dtype)
            if to_weight:
                _add_outer(weight_grad, q, student[rows])
        ctx.save_for_backward(states_grad, weight_grad)
        ctx.dtypes = student.dtype, weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        gradients = [
            (gradient * above[0].to(gradient.dtype)).to(dtype) if needed else None
            for gradient, dtype, needed in zip(
                ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[:2], strict=True
            )
        ]
        return (*gradients, None, None, None, None)


def has_kernel(logits: Tensor) -> bool:
    """Whether Triton makes divergence and gradient of such logits."""
    return logits.is_cuda and logits.dtype == torch.float32 and find_spec("triton") is not None


def _to_gradient(p: Tensor, q: Tensor, softcap: float | None) -> Tensor:
    """KL of each row; logits come in, and q leaves as the gradient of those before the cap."""
    if has_kernel(q):
        from kldcloud.qad import loss_triton

        return loss_triton.to_gradient(p, q, softcap)
    slope = None if softcap is None else 1 - (q / softcap).square_()
    divergence = _divergence(p, q)
    q.exp_().sub_(p)
    if slope is not None:
        q *= slope
    return divergence


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL of each row; logits come in, and p leaves as probabilities, q as log-probabilities."""
    p.sub_(p.logsumexp(dim=-1, keepdim=True))
    q.sub_(q.logsumexp(dim=-1, keepdim=True))
    difference = p - q
    divergence: Tensor = torch.linalg.vecdot(p.exp_(), difference)
    return divergence


def _logits(states: Tensor, weight: Tensor, softcap: float | None) -> Tensor:
    """Logits ``[rows, V]`` in float32 or wider."""
    if states.dtype == weight.dtype and states.dtype not in _HALVES:
        logits = states @ weight.T
    elif states.dtype == weight.dtype and states.is_cuda:
        logits = torch.mm(states, weight.T, out_dtype=torch.float32)
    else:
        wide = states.to(_wide(states.dtype))
        logits = torch.empty(len(states), len(weight), dtype=wide.dtype, device=states.device)
        for start in range(0, len(weight), _TILE):
            tile = weight[start : start + _TILE].to(wide.dtype)
            torch.mm(wide, tile.T, out=logits[:, start : start + _TILE])
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def _times(difference: Tensor, weight: Tensor, states_dtype: torch.dtype) -> Tensor:
    """The product ``[rows, V] @ [V, d]``, summed in float32 or wider."""
    if difference.dtype == weight.dtype:
        return difference @ weight
    if difference.is_cuda and states_dtype == weight.dtype:
        return torch.mm(difference.to(weight.dtype), weight, out_dtype=torch.float32)
    product = difference.new_zeros(len(difference), weight.shape[1])
    for start in range(0, len(weight), _TILE):
        tile = weight[start : start + _TILE].to(difference.dtype)
        product.addmm_(difference[:, start : start + _TILE], tile)
    return product


def _add_outer(total: Tensor, difference: Tensor, states: Tensor) -> None:
    """Add the product ``[V, rows] @ [rows, d]`` to a sum in float32 or wider."""
    if difference.is_cuda and states.dtype in _HALVES:
        total += torch.mm(difference.to(states.dtype).T, states, out_dtype=torch.float32)
    else:
        total.addmm_(difference.T, states.to(total.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _portions(states: Tensor, weight: Tensor) -> list[slice]:
    limit = _LOGITS_AT_ONCE if states.device.type == "cpu" else _LOGITS_AT_ONCE_ON_GPU
    step = max(1, limit // len(weight))
    return [slice(start, start + step) for start in range(0, len(states), step)]


def _check(
    student: Tensor, student_head: OutputHead, teacher: Tensor, teacher_head: OutputHead
) -> None:
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(
            f"student and teacher have other tokens: {tuple(student.shape[:-1])} and "
            f"{tuple(teacher.shape[:-1])}"
        )
    if len(student_head.weight) != len(teacher_head.weight):
        raise ValueError(
            f"student and teacher have other vocabularies: {len(student_head.weight)} and "
            f"{len(teacher_head.weight)} tokens"
        )
