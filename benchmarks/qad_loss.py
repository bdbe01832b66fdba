"""Time and memory of the distillation loss, beside the dense one that PyTorch users write.

    python benchmarks/qad_loss.py [--tokens 512] [--vocabulary 49152] [--width 576] [--json]

The peer makes all logits, `log_softmax` of both models and `kl_div`, and leaves the gradient to
autograd. Both start from the same states and heads and end with the gradient of the student's
states. Each runs in a process of its own, whose peak of resident memory over what stood before the
first loss is its memory; time is the best of the rounds. PyTorch's default number of threads.
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

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from kldcloud.qad.loss import OutputHead, kld_sum

OURS, DENSE = "kldcloud", "log_softmax + kl_div"
UNIT = 1024 if sys.platform == "linux" else 1


def dense(student: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor) -> Tensor:
    """Mean divergence in nats, all logits at once."""
    q, p = log_softmax(student @ weight.T, -1), log_softmax(teacher @ teacher_weight.T, -1)
    return kl_div(q, p, log_target=True, reduction="batchmean")


def ours(student: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor) -> Tensor:
    """The same, as training computes it."""
    found = kld_sum(student, OutputHead(weight), teacher, OutputHead(teacher_weight))
    return found.total / found.count


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {OURS: ours, DENSE: dense}


def resident_now() -> int:
    """Bytes of this process in memory; its peak so far where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
    return pages * resource.getpagesize()


def measure(name: str, tokens: int, vocabulary: int, width: int, rounds: int) -> dict[str, float]:
    """Best seconds, peak bytes and the loss itself."""
    torch.manual_seed(0)
    teacher = torch.randn(tokens, width)
    weight = 3 * torch.randn(vocabulary, width) / math.sqrt(width)
    student = (teacher + 0.2 * torch.randn(tokens, width)).requires_grad_()
    before = resident_now()
    seconds = []
    for _ in range(rounds):
        student.grad = None
        start = time.perf_counter()
        loss = LOSSES[name](student, weight, teacher, weight)
        loss.backward()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
    return {"seconds": min(seconds), "bytes": peak - before, "loss": float(loss.detach())}


def apart(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--contestant", name]
    for option in ("tokens", "vocabulary", "width", "rounds"):
        command += [f"--{option}", str(getattr(arguments, option))]
    found: dict[str, float] = json.loads(subprocess.check_output(command))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="figures as JSON on stdout")
    parser.add_argument("--contestant", choices=LOSSES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = (arguments.tokens, arguments.vocabulary, arguments.width)
    if arguments.contestant:
        print(json.dumps(measure(arguments.contestant, *shape, arguments.rounds)))
        return
    found = {name: apart(name, arguments) for name in LOSSES}
    ratios = {key: found[DENSE][key] / found[OURS][key] for key in ("seconds", "bytes")}
    assert math.isclose(found[OURS]["loss"], found[DENSE]["loss"], rel_tol=1e-5)
    if arguments.json:
        print(json.dumps({"tokens, vocabulary, width": shape, **found, "ratios": ratios}, indent=1))
        return
    print(f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("{} tokens, V = {:,}, d = {}, float32".format(*shape))
    for name, line in found.items():
        print(f"  {name:24}{line['seconds']:8.2f} s{line['bytes'] / 1e6:10,.0f} MB")
    print(f"  the dense loss takes {ratios['seconds']:.2f} x the time,", end=" ")
    print(f"{ratios['bytes']:.1f} x the memory")


if __name__ == "__main__":
    main()
