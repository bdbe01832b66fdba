"""Speed, memory and error on a GPU of the statistics that are made from hidden states and heads.

    python benchmarks/gpu.py [--rows 4096] [--vocabulary 248320] [--width 2048] [--json] [--cpu]

Two peers in the same run: the limit, which is the two products alone (`torch.mm`, in the dtype of
its inputs), and what people write in PyTorch: all logits, `log_softmax` of both, `kl_div`, for the
divergence alone. Contestants take turns over rounds; figures are medians, ratios medians of each
round's own. Memory is the allocator's peak over what the inputs take. The error is that of a few
rows against float64 products and float64 sums. `--cpu` runs the same at a small size on a CPU, to
see that it runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import kl_div, log_softmax

from kldcloud.divergence.kernel import TokenStatistics
from kldcloud.divergence.linear.passes import Engine
from kldcloud.divergence.linear.side import LinearSide, exact_products
from kldcloud.divergence.linear.statistics import linear_statistics

LIMIT, DENSE = "both products alone", "log_softmax + kl_div"
OURS, LLAMA, EAGER = "kldcloud", "kldcloud + llama.cpp's", "kldcloud, torch"
GOAL_OF_LIMIT, GOAL_OVER_DENSE, GOAL_MEMORY = 0.70, 4.0, 0.1
CHECKED_ROWS = 4
SMALL = {"rows": 48, "vocabulary": 6000, "width": 64, "rounds": 2}


@dataclass(frozen=True, slots=True)
class Pair:
    """What the contestants start from."""

    base: LinearSide
    candidate: LinearSide
    tokens: np.ndarray


def make_pair(rows: int, vocabulary: int, width: int, dtype: torch.dtype, device: str) -> Pair:
    """Normal logits some nats wide, and a candidate about 0.05 nats away."""
    random = torch.Generator(device).manual_seed(0)
    states = torch.randn(rows, width, generator=random, device=device)
    weight = torch.randn(vocabulary, width, generator=random, device=device) * 3 / width**0.5
    noise = 0.1 * torch.randn(weight.shape, generator=random, device=device)
    base = LinearSide(states.to(dtype), weight.to(dtype))
    candidate = LinearSide(states.to(dtype), (weight * (1 + noise)).to(dtype))
    tokens = np.random.default_rng(0).integers(0, vocabulary, rows).astype(np.int32)
    return Pair(base, candidate, tokens)


def products(pair: Pair) -> None:
    """The limit: no way to logits is faster."""
    with exact_products():
        for side in (pair.base, pair.candidate):
            torch.mm(side.states, side.weight.T)


def dense(pair: Pair) -> torch.Tensor:
    """The divergence of each row from whole logits."""
    with torch.no_grad(), exact_products():
        p, q = (
            log_softmax((side.states @ side.weight.T).float(), -1)
            for side in (pair.base, pair.candidate)
        )
        return kl_div(q, p, log_target=True, reduction="none").sum(-1)


def contestants(pair: Pair, device: str) -> dict[str, Callable[[], object]]:
    """Name -> what does the work."""

    def ours(engine: Engine | None = None, *, llama: bool = False) -> Callable[[], object]:
        return lambda: linear_statistics(
            pair.base, pair.candidate, pair.tokens, llama_compat=llama, engine=engine
        )

    found: dict[str, Callable[[], object]] = {
        LIMIT: lambda: products(pair),
        OURS: ours(),
        LLAMA: ours(llama=True),
        DENSE: lambda: dense(pair),
    }
    if device == "cuda":
        found[EAGER] = ours("torch")
    return found


def timed(work: Callable[[], object], device: str) -> tuple[float, int]:
    """Seconds, and peak bytes over what was there (0 where nobody counts)."""
    if device == "cpu":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start, 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start, torch.cuda.max_memory_allocated() - before


def error(pair: Pair) -> float:
    """Largest error of a row's divergence, in nats, against float64 throughout."""
    rows = slice(0, CHECKED_ROWS)
    base, candidate = pair.base.select(rows), pair.candidate.select(rows)
    p, q = (
        log_softmax(side.states.double() @ side.weight.double().T, -1) for side in (base, candidate)
    )
    exact = (p.exp() * (p - q)).sum(-1).cpu().numpy()
    found = linear_statistics(base, candidate, pair.tokens[rows], llama_compat=False)
    return float(np.abs(found.kld - exact).max())


def compare(pair: Pair, rounds: int, device: str) -> dict[str, object]:
    """Figures of one dtype as a JSON tree."""
    runners = contestants(pair, device)
    found = runners[OURS]()
    assert isinstance(found, TokenStatistics)
    for work in runners.values():
        work()  # compiles, and finds its products' best algorithms
    torch.cuda.empty_cache()
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    peaks = dict.fromkeys(runners, 0)
    for _ in range(rounds):
        for name, work in runners.items():
            taken, peak = timed(work, device)
            seconds[name].append(taken)
            peaks[name] = max(peaks[name], peak)

    def ratio(name: str, peer: str) -> float:
        pairs = zip(seconds[peer], seconds[name], strict=True)
        return statistics.median(theirs / taken for theirs, taken in pairs)

    rows, mean = len(pair.tokens), {name: statistics.median(seconds[name]) for name in runners}
    work = 2 * rows * pair.base.vocabulary * (pair.base.width + pair.candidate.width)
    return {
        "dtype": str(pair.base.weight.dtype).removeprefix("torch."),
        "mean_kld": float(found.kld.mean()),
        "mean_kld_dense": float(dense(pair).double().mean()),
        "largest_error": error(pair),
        "limit_tflops": work / mean[LIMIT] / 1e12,
        "contestants": {
            name: {"rows_per_s": rows / mean[name], "peak_mib": peaks[name] / 2**20}
            for name in runners
        },
        "of_limit": {name: ratio(name, LIMIT) for name in runners if name not in {LIMIT, DENSE}},
        "over_dense": ratio(OURS, DENSE),
        "memory_of_dense": peaks[OURS] / peaks[DENSE] if peaks[DENSE] else None,
    }


def verdict(met: bool, goal: str) -> str:
    return f"goal {goal} {'met' if met else 'MISSED'}"


def show(figures: dict, *, judged: bool) -> None:  # type: ignore[type-arg]
    """One dtype's figures for people; on a GPU judged by the goals."""
    print(f"\n{figures['dtype']}: the products run at {figures['limit_tflops']:,.2f} TFLOP/s")
    for name, line in figures["contestants"].items():
        share = figures["of_limit"].get(name)
        part = "" if share is None else f"{share:8.0%} of the limit"
        memory = f"{line['peak_mib']:10,.0f} MiB" if line["peak_mib"] else f"{'-':>14}"
        print(f"  {name:24}{line['rows_per_s']:12,.0f} rows/s{memory}{part}")
    print(
        f"  mean KLD {figures['mean_kld']:.7f} nats (dense {figures['mean_kld_dense']:.7f}), "
        f"largest error against float64 {figures['largest_error']:.1e}"
    )
    if not judged:
        return
    share, over = figures["of_limit"][OURS], figures["over_dense"]
    memory = figures["memory_of_dense"]
    print(f"  {share:.0%} of the limit, {verdict(share >= GOAL_OF_LIMIT, f'{GOAL_OF_LIMIT:.0%}')}")
    print(f"  {over:.1f} x {DENSE}, {verdict(over >= GOAL_OVER_DENSE, f'{GOAL_OVER_DENSE:g} x')}")
    print(f"  {memory:.3f} of its memory, {verdict(memory <= GOAL_MEMORY, f'{GOAL_MEMORY:g}')}")


def machine(device: str) -> str:
    """What does the work."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=248_320)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cpu", action="store_true", help="a small size, on a CPU")
    parser.add_argument("--json", action="store_true", help="figures as JSON on stdout")
    arguments = parser.parse_args()
    if arguments.cpu:
        vars(arguments).update(SMALL)
    elif not torch.cuda.is_available():
        print("no GPU that PyTorch can use; --cpu runs a small size without one", file=sys.stderr)
        sys.exit(2)
    device = "cpu" if arguments.cpu else "cuda"
    size = (arguments.rows, arguments.vocabulary, arguments.width)
    result = {
        "machine": machine(device),
        "torch": torch.__version__,
        "rows, vocabulary, width": size,
        "dtypes": [],
    }
    if not arguments.json:
        print(f"{result['machine']}, PyTorch {torch.__version__}")
        print("{:,} rows, V = {:,}, d = {:,}".format(*size))
    for dtype in (torch.bfloat16, torch.float32):
        figures = compare(make_pair(*size, dtype, device), arguments.rounds, device)
        result["dtypes"].append(figures)
        if not arguments.json:
            show(figures, judged=not arguments.cpu)
    if arguments.json:
        json.dump(result, sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
