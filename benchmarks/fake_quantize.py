"""What rounding every weight of a student costs at each training step, beside copying it.

    python benchmarks/fake_quantize.py [--rows 4096] [--columns 4096] [--rounds 7] [--threads 1]
        [--device cuda] [--json]

`w.clone()` reads and writes each weight once, which is the least that any format can do: the ratio
says how far from the memory's limit a format is. Contestants take turns over rounds; figures are
medians over rounds, ratios medians of each round's own ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from kernel import machine

from kldcloud.qad.formats import nvfp4
from kldcloud.qad.formats.blocks import BLOCK_TYPES, BlockType
from kldcloud.qad.formats.grid import Grid

CLONE = "w.clone()"

Contestants = Mapping[str, Callable[[], torch.Tensor]]


def init_of(kind: BlockType, shape: tuple[int, int]) -> Grid:
    """A grid of random codes whose every scale is a plausible number."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // kind.elements, kind.nbytes), np.uint8)
    starts = [208] if kind.name == "Q6_K" else [0]
    if kind.scales(blocks[:1]).base is not None:
        starts = [0, 2]
    for start in starts:
        halves = rng.uniform(1e-3, 1e-2, (len(blocks), 1)).astype(np.float16)
        blocks[:, start : start + 2] = halves.view(np.uint8)
    return Grid.from_bytes(kind.name, blocks.reshape(-1), shape)


def seconds(run: Callable[[], torch.Tensor], device: str) -> float:
    """Time of one call, with its result freed again as a training step frees it."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = run()
    if device == "cuda":
        torch.cuda.synchronize()
    del result
    return time.perf_counter() - start


def measure(contestants: Contestants, rounds: int, device: str) -> dict[str, list[float]]:
    for run in contestants.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            taken[name].append(seconds(run, device))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    shape = (args.rows, args.columns)
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(args.device)
    contestants: dict[str, Callable[[], torch.Tensor]] = {CLONE: w.clone}
    for name, kind in BLOCK_TYPES.items():
        contestants[name] = partial(init_of(kind, shape).to(args.device).fake_quantize, w)
    contestants["NVFP4"] = partial(nvfp4.fake_quantize, w)
    taken = measure(contestants, args.rounds, args.device)

    rows = [
        {
            "format": name,
            "ns_per_weight": statistics.median(times) / w.numel() * 1e9,
            "times_clone": statistics.median(
                mine / copy for mine, copy in zip(times, taken[CLONE], strict=True)
            ),
        }
        for name, times in taken.items()
    ]
    on = f"{machine()}, {args.threads} thread(s)"
    if args.device == "cuda":
        on = torch.cuda.get_device_name()
    if args.json:
        print(json.dumps({"machine": on, "torch": torch.__version__, "formats": rows}))
        return
    print(f"{args.rows} x {args.columns} float32 weights; {on}; torch {torch.__version__}")
    print(f"{'format':<10} {'ns/weight':>10} {'x clone':>8}")
    for row in rows:
        print(f"{row['format']:<10} {row['ns_per_weight']:>10.3f} {row['times_clone']:>8.2f}")


if __name__ == "__main__":
    main()
