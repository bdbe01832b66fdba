"""The distillation loss is the dense one, its gradient autograd's, its memory a few rows'."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax
from torch.utils._python_dispatch import TorchDispatchMode

from kldcloud.qad import loss as module
from kldcloud.qad.loss import OutputHead, kld_sum, token_kld


def make(
    tokens: int, vocabulary: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student's states and head, teacher's states and head: logits of a few nats, alike."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    states, head = normal(tokens, width), 3 * normal(vocabulary, width) / math.sqrt(width)
    near_states = states + 0.2 * normal(tokens, width)
    near_head = head + 0.02 * normal(vocabulary, width)
    return (
        near_states.to(dtype).requires_grad_(),
        near_head.to(dtype).requires_grad_(),
        states.to(dtype),
        head.to(dtype),
    )


def dense(
    student: Tensor,
    weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    softcap: float | None = None,
    teacher_softcap: float | None = None,
) -> Tensor:
    """Each token's divergence by the book, in float64 and with all logits at once."""
    q, p = student.double() @ weight.double().T, teacher.double() @ teacher_weight.double().T
    if softcap:
        q = softcap * torch.tanh(q / softcap)
    if teacher_softcap:
        p = teacher_softcap * torch.tanh(p / teacher_softcap)
    return kl_div(log_softmax(q, -1), log_softmax(p, -1), log_target=True, reduction="none").sum(-1)


def ours(
    student: Tensor,
    weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    softcap: float | None = None,
    teacher_softcap: float | None = None,
) -> Tensor:
    return kld_sum(
        student,
        OutputHead(weight, softcap),
        teacher,
        OutputHead(teacher_weight, teacher_softcap),
    ).total


def gradients(total: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(total, inputs)


@pytest.mark.parametrize(("tokens", "vocabulary", "width"), [(1, 2, 1), (7, 33, 5), (64, 997, 48)])
@pytest.mark.parametrize("caps", [(None, None), (2.5, None), (4.0, 2.5)])
@pytest.mark.parametrize("at_once", [1, 100, 5000])
def test_sum_and_gradients_are_the_dense_ones(
    tokens: int,
    vocabulary: int,
    width: int,
    caps: tuple[float | None, float | None],
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", at_once)
    inputs = make(tokens, vocabulary, width)
    expected, found = dense(*inputs, *caps).sum(), ours(*inputs, *caps)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    for a, b in zip(
        gradients(3 * found, *inputs[:2]), gradients(3 * expected, *inputs[:2]), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_gradients_are_those_of_finite_differences(softcap: float | None) -> None:
    student, weight, teacher, teacher_weight = make(5, 11, 3)
    assert torch.autograd.gradcheck(
        lambda a, b: ours(a, b, teacher, teacher_weight, softcap, softcap), (student, weight)
    )


def test_float32_is_near_float64_at_a_real_vocabulary() -> None:
    inputs = make(37, 50_257, 64, torch.float32)
    expected, found = dense(*inputs).sum(), ours(*inputs)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)
    for a, b in zip(gradients(found, *inputs[:2]), gradients(expected, *inputs[:2]), strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 1e-5 * b.norm()  # measured: 3e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    # The dense loss of the very same rounded numbers: only the gradients are rounded, once.
    inputs = make(19, 9001, 48, dtype)
    expected, found = dense(*inputs).sum(), ours(*inputs)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)
    for a, b in zip(gradients(found, *inputs[:2]), gradients(expected, *inputs[:2]), strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=torch.finfo(dtype).eps, atol=4e-6)


def test_a_teacher_of_another_width_and_dtype_is_fine() -> None:
    student, weight, *_ = make(9, 5000, 16, torch.float32)
    *_, teacher, teacher_weight = make(9, 5000, 24, torch.bfloat16, seed=1)
    found = ours(student, weight, teacher, teacher_weight)
    expected = dense(student, weight, teacher, teacher_weight).sum()
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        inputs = make(100, 9001, 64, dtype)
        there = [item.detach().cuda().requires_grad_(item.requires_grad) for item in inputs]
        expected, found = ours(*inputs), ours(*there)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=0)
        for a, b in zip(
            gradients(found, *there[:2]), gradients(expected, *inputs[:2]), strict=True
        ):
            assert (a.cpu() - b).float().norm() < 1e-2 * b.float().norm()


def test_uneven_micro_batches_weigh_every_token_alike() -> None:
    student, weight, teacher, teacher_weight = make(23, 101, 8)
    (whole,) = gradients(dense(student, weight, teacher, teacher_weight).mean(), student)
    student.grad = None
    count = 0
    for rows in (slice(0, 2), slice(2, 19), slice(19, 23)):
        part = kld_sum(student[rows], OutputHead(weight), teacher[rows], OutputHead(teacher_weight))
        count += part.count
        (part.total / 23).backward()
    assert count == 23
    torch.testing.assert_close(student.grad, whole, rtol=1e-10, atol=1e-13)


def test_leading_dimensions_are_tokens() -> None:
    student, weight, teacher, teacher_weight = make(6, 31, 4)
    folded = kld_sum(
        student.reshape(2, 3, 4),
        OutputHead(weight),
        teacher.reshape(2, 3, 4),
        OutputHead(teacher_weight),
    )
    assert folded.count == 6
    assert torch.equal(folded.total, ours(student, weight, teacher, teacher_weight))


def test_no_gradient_reaches_the_teacher_or_a_frozen_head() -> None:
    student, weight, teacher, teacher_weight = make(4, 31, 4)
    teacher.requires_grad_()
    teacher_weight.requires_grad_()
    weight.requires_grad_(False)
    ours(student, weight, teacher, teacher_weight).backward()
    assert student.grad is not None
    assert (weight.grad, teacher.grad, teacher_weight.grad) == (None, None, None)


def test_the_same_model_has_no_divergence() -> None:
    _, _, teacher, weight = make(20, 3001, 16, torch.float32)
    found = token_kld(teacher, OutputHead(weight), teacher, OutputHead(weight))
    assert torch.equal(found.kld, torch.zeros(20))
    assert found.same_top.all()


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_each_tokens_divergence_and_agreement(softcap: float | None) -> None:
    inputs = make(50, 1009, 16)
    student, weight, teacher, teacher_weight = inputs
    found = token_kld(
        student, OutputHead(weight, softcap), teacher, OutputHead(teacher_weight, softcap)
    )
    torch.testing.assert_close(found.kld, dense(*inputs, softcap, softcap), rtol=1e-11, atol=1e-13)
    same = (student @ weight.T).argmax(-1) == (teacher @ teacher_weight.T).argmax(-1)
    assert torch.equal(found.same_top, same)
    assert 0 < int(same.sum()) < 50
    assert not found.kld.requires_grad


def test_the_same_inputs_give_the_same_bits() -> None:
    inputs = make(60, 9001, 32, torch.float32)
    first, second = (ours(*inputs) for _ in range(2))
    assert torch.equal(first, second)
    for a, b in zip(gradients(first, *inputs[:2]), gradients(second, *inputs[:2]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_is_larger_than_some_rows_of_logits(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 40_000)
    inputs = make(200, 9001, 4, dtype)
    with Largest() as seen:
        gradients(ours(*inputs), *inputs[:2])
        token_kld(inputs[0], OutputHead(inputs[1]), inputs[2], OutputHead(inputs[3]))
    assert seen.elements == 4 * 9001  # four rows of logits, and the head's gradient


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for item in made if isinstance(made, tuple) else (made,):
            if isinstance(item, Tensor):
                self.elements = max(self.elements, item.numel())
        return made


def test_other_tokens_or_another_vocabulary_are_refused() -> None:
    student, weight, teacher, teacher_weight = make(4, 31, 4)
    with pytest.raises(ValueError, match="other tokens"):
        ours(student, weight, teacher[:3], teacher_weight)
    with pytest.raises(ValueError, match="other vocabularies: 30 and 31"):
        ours(student, weight[:30], teacher, teacher_weight)
