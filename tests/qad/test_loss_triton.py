"""The loss's Triton kernel: on a GPU where there is one, else in Triton's interpreter; compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from kldcloud.qad import loss
from kldcloud.qad.loss import OutputHead, has_kernel, kld_sum

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCRIPT = Path(__file__).parent / "compile_loss_for_h100.py"

if DEVICE == "cpu":
    # Triton reads it when it is imported, which no test module does.
    os.environ["TRITON_INTERPRET"] = "1"


def compiles_for_gpus() -> bool:
    """Whether Triton is there already, and not as the interpreter."""
    there = sys.modules.get("triton")
    return there is not None and isinstance(there.language.sum, there.JITFunction)


pytestmark = [
    # Of numpy, where a column is beyond the vocabulary.
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning"),
    pytest.mark.skipif(
        find_spec("triton") is None, reason="Triton is not installed: it comes for Linux only"
    ),
    pytest.mark.skipif(
        DEVICE == "cpu" and compiles_for_gpus(),
        reason="Triton was imported to compile for GPUs, not to interpret, and there is no GPU",
    ),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def by_autograd(
    teacher: Tensor, student: Tensor, caps: tuple[float | None, float | None] = (None, None)
) -> tuple[Tensor, Tensor]:
    """Divergence of each row and gradient of the student's logits, in float64 and by the book."""
    leaf = student.double().requires_grad_()
    p, q = (
        log_softmax(capped(teacher.double(), caps[0]), -1),
        log_softmax(capped(leaf, caps[1]), -1),
    )
    kld = kl_div(q, p, log_target=True, reduction="none").sum(-1)
    return kld.detach(), torch.autograd.grad(kld.sum(), leaf)[0]


def by_kernel(
    teacher: Tensor, student: Tensor, caps: tuple[float | None, float | None] = (None, None)
) -> tuple[Tensor, Tensor]:
    from kldcloud.qad.loss_triton import to_gradient

    p, q = capped(teacher, caps[0]).to(DEVICE), capped(student, caps[1]).to(DEVICE, copy=True)
    before = p.clone()
    kld = to_gradient(p, q, caps[1])
    torch.testing.assert_close(p, before, rtol=0, atol=0, equal_nan=True)
    return kld.cpu(), q.cpu()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("vocabulary", [1, 2, 33, 4095, 4096, 4097, 10_001])
@pytest.mark.parametrize("sigma", [1e-4, 0.2, 3.0])
def test_divergence_and_gradient_are_those_of_float64(
    rows: int, vocabulary: int, sigma: float
) -> None:
    teacher = 3 * normal(rows, vocabulary)
    student = teacher + sigma * normal(rows, vocabulary, seed=1)
    (kld, gradient), (wanted, by_book) = by_kernel(teacher, student), by_autograd(teacher, student)
    # In float32 each logit's distance from the largest is off by some 1e-7 nats, and so is
    # ln(q / p), of which a small divergence is half the variance: it counts by the root.
    assert ((kld - wanted).abs() <= 1e-6 * wanted + 1e-7 * wanted.sqrt()).all()
    assert kld.min() >= 0
    larger = torch.maximum(*(log_softmax(x.double(), -1).exp() for x in (teacher, student)))
    assert ((gradient - by_book).abs() <= 4e-6 * larger).all()
    assert (gradient - by_book).norm() <= 1e-6 * by_book.norm() + 2e-7 * larger.norm()


@pytest.mark.parametrize("caps", [(2.5, None), (None, 4.0), (2.5, 4.0), (30.0, 30.0)])
def test_the_gradient_is_that_before_the_soft_cap(caps: tuple[float | None, float | None]) -> None:
    teacher = 3 * normal(5, 5001)
    student = teacher + 0.3 * normal(5, 5001, seed=1)
    kld, gradient = by_kernel(teacher, student, caps)
    wanted, by_book = by_autograd(teacher, student, caps)
    torch.testing.assert_close(kld, wanted, rtol=3e-6, atol=0)
    assert (gradient - by_book).norm() <= 1e-5 * by_book.norm()


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("spread", [0.0, 5.0])
def test_equal_logits_have_no_divergence_and_no_gradient(
    spread: float, softcap: float | None
) -> None:
    logits = capped(spread * normal(4, 9001), softcap) + 0.5
    kld, gradient = by_kernel(logits, logits)
    assert not kld.any()
    assert not gradient.any()


@pytest.mark.parametrize("offsets", [(1e4, 0), (0, 1e4), (1e4, 1e4), (-1e4, 1e4)])
def test_what_is_added_to_all_logits_does_not_count(offsets: tuple[float, float]) -> None:
    # What float32 rounds off by adding is in what float64 gets, too.
    teacher = 3 * normal(3, 5001) + offsets[0]
    student = 3 * normal(3, 5001, seed=1) + offsets[1]
    (kld, gradient), (wanted, by_book) = by_kernel(teacher, student), by_autograd(teacher, student)
    torch.testing.assert_close(kld, wanted, rtol=3e-6, atol=0)
    assert (gradient - by_book).norm() <= 1e-5 * by_book.norm()


def test_the_largest_logit_may_come_last_or_first() -> None:
    teacher, student = normal(2, 9001), normal(2, 9001, seed=1)
    teacher[0, -1] = student[0, 0] = teacher[1, 0] = student[1, -1] = 60.0
    (kld, gradient), (wanted, by_book) = by_kernel(teacher, student), by_autograd(teacher, student)
    assert wanted.min() > 40
    torch.testing.assert_close(kld, wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), by_book, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_shows_and_spoils_no_other(bad: float) -> None:
    for side in (0, 1):
        logits = [normal(3, 5001), normal(3, 5001, seed=1)]
        logits[side][1, 17] = bad
        kld, gradient = by_kernel(*logits)
        assert kld.isfinite().tolist() == [True, False, True]
        assert gradient.isfinite().all(-1).tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("caps", [(None, None), (4.0, None), (None, 2.5), (4.0, 2.5)])
def test_the_whole_loss_is_what_torch_makes_it(
    caps: tuple[float | None, float | None], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "_LOGITS_AT_ONCE", 7 * 4999)  # portions of 7 rows, and one of 2
    monkeypatch.setattr(loss, "_LOGITS_AT_ONCE_ON_GPU", 7 * 4999)
    teacher, teacher_weight = normal(23, 16), normal(4999, 16, seed=1)
    student, weight = teacher + 0.2 * normal(23, 16, seed=2), 1.02 * teacher_weight
    states, head, wanted, wanted_head = (
        each.to(DEVICE, dtype) for each in (student, weight, teacher, teacher_weight)
    )

    def losses(*, kernel: bool) -> tuple[Tensor, ...]:
        monkeypatch.setattr(loss, "has_kernel", lambda _: kernel)
        leaves = states.clone().requires_grad_(), head.clone().requires_grad_()
        total = kld_sum(
            leaves[0], OutputHead(leaves[1], caps[1]), wanted, OutputHead(wanted_head, caps[0])
        ).total
        return total.detach(), *torch.autograd.grad(3 * total, leaves)

    one, other = losses(kernel=True), losses(kernel=False)
    assert one[0].dtype == torch.float64
    torch.testing.assert_close(one[0], other[0], rtol=2e-6, atol=0)
    for a, b in zip(one[1:], other[1:], strict=True):
        assert a.dtype == dtype
        rounding = 2e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
        assert (a - b).norm() <= rounding * b.norm()


def test_processors_and_float64_keep_to_torch() -> None:
    assert not has_kernel(torch.zeros(2, 3))
    assert not has_kernel(torch.zeros(2, 3, dtype=torch.float64, device=DEVICE))
    assert has_kernel(torch.zeros(2, 3, device=DEVICE)) is (DEVICE == "cuda")


def test_the_kernel_compiles_for_an_h100_without_one(tmp_path: Path) -> None:
    environment = {name: os.environ[name] for name in os.environ if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, SCRIPT], env=environment, check=True, stdout=subprocess.PIPE
    )
    found = json.loads(done.stdout)
    assert set(found) == {"aligned", "odd"}
    assert all(kernel["cubin"] for kernel in found.values())
    # Each model's logits are read twice, 16 entries a thread: 16 bytes at once where rows allow it.
    assert found["aligned"]["vector_loads"] == 16
    assert max(kernel["shared"] for kernel in found.values()) <= 1024
