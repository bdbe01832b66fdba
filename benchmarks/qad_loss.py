"""Time and memory of the distillation loss, beside the dense one that PyTorch users write.

    python benchmarks/qad_loss.py [--tokens 512] [--vocabulary 49152] [--width 576]
                                  [--dtype float32] [--json]

The peer makes all logits, `log_softmax` of both models and `kl_div`, and leaves the gradient to
autograd. Both start from the same states and heads and end with the gradient of the student's
states. Each runs in a process of its own, whose peak of resident memory over what stood before the
first loss is its memory; time is the best of the rounds. PyTorch's default number of threads.

Where there is a GPU the same runs there, with a third contestant: our loss without its Triton
kernel, by PyTorch's operations. Memory is then the allocator's peak over what the inputs take. The
usual size is a single portion there, so ask for more: `--tokens 8192 --vocabulary 151936 --width
2048 --dtype bfloat16`, the dtype of training on GPUs. There the peer multiplies in bfloat16 and
takes its logarithms in float32, as people write it.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from kldcloud.qad import loss as loss_module
from kldcloud.qad.loss import OutputHead, has_kernel, kld_sum

OURS, EAGER, DENSE = "kldcloud", "kldcloud, torch", "log_softmax + kl_div"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
UNIT = 1024 if sys.platform == "linux" else 1


def dense(student: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor) -> Tensor:
    """Mean divergence in nats, all logits at once."""
    q = log_softmax((student @ weight.T).float(), -1)
    p = log_softmax((teacher @ teacher_weight.T).float(), -1)
    return kl_div(q, p, log_target=True, reduction="batchmean")


def ours(student: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor) -> Tensor:
    """The same, as training computes it."""
    found = kld_sum(student, OutputHead(weight), teacher, OutputHead(teacher_weight))
    return found.total / found.count


def without_kernel(
    student: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor
) -> Tensor:
    """The same on a GPU without Triton."""
    with patch.object(loss_module, "has_kernel", return_value=False):
        return ours(student, weight, teacher, teacher_weight)


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {OURS: ours, DENSE: dense}
if has_kernel(torch.empty(0, device=DEVICE)):
    LOSSES[EAGER] = without_kernel


def in_use() -> int:
    """Bytes of the inputs' device in use, where peaks count from; the peak so far if none tells."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return peak()
    return pages * resource.getpagesize()


def peak() -> int:
    """The most bytes in use."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


def wait() -> None:
    """Until all work is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def measure(
    name: str, tokens: int, vocabulary: int, width: int, rounds: int, dtype: torch.dtype
) -> dict[str, float]:
    """Best seconds, peak bytes and the loss itself."""
    torch.manual_seed(0)
    teacher = torch.randn(tokens, width, device=DEVICE).to(dtype)
    weight = (3 * torch.randn(vocabulary, width, device=DEVICE) / math.sqrt(width)).to(dtype)
    noise = 0.2 * torch.randn(tokens, width, device=DEVICE)
    student = (teacher + noise).to(dtype).requires_grad_()
    before = in_use()
    seconds = []
    for _ in range(rounds):
        student.grad = None
        wait()
        start = time.perf_counter()
        loss = LOSSES[name](student, weight, teacher, weight)
        loss.backward()
        wait()
        seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds), "bytes": peak() - before, "loss": float(loss.detach())}


def apart(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--contestant", name]
    for option in ("tokens", "vocabulary", "width", "rounds", "dtype"):
        command += [f"--{option}", str(getattr(arguments, option))]
    found: dict[str, float] = json.loads(subprocess.check_output(command))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", action="store_true", help="figures as JSON on stdout")
    parser.add_argument("--contestant", choices=LOSSES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = (arguments.tokens, arguments.vocabulary, arguments.width)
    if arguments.contestant:
        dtype = getattr(torch, arguments.dtype)
        print(json.dumps(measure(arguments.contestant, *shape, arguments.rounds, dtype)))
        return
    found = {name: apart(name, arguments) for name in LOSSES}
    ratios = {key: found[DENSE][key] / found[OURS][key] for key in ("seconds", "bytes")}
    for line in found.values():
        # The peer rounds its logits as its products come.
        tolerance = 1e-5 if arguments.dtype == "float32" else 0.05
        assert math.isclose(line["loss"], found[DENSE]["loss"], rel_tol=tolerance)
    if arguments.json:
        print(json.dumps({"tokens, vocabulary, width": shape, **found, "ratios": ratios}, indent=1))
        return
    where = (
        torch.cuda.get_device_name() if DEVICE == "cuda" else f"{torch.get_num_threads()} threads"
    )
    print(f"{platform.machine()}, torch {torch.__version__}, {where}")
    print("{} tokens, V = {:,}, d = {}, {}".format(*shape, arguments.dtype))
    digits = 4 if DEVICE == "cuda" else 2
    for name, line in found.items():
        print(f"  {name:24}{line['seconds']:8.{digits}f} s{line['bytes'] / 1e6:10,.0f} MB")
    print(f"  the dense loss takes {ratios['seconds']:.2f} x the time,", end=" ")
    print(f"{ratios['bytes']:.1f} x the memory")


if __name__ == "__main__":
    main()
