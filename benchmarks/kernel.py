"""Speed of the per-token kernel on one core, beside llama.cpp's loop and the memory's own limit.

    python benchmarks/kernel.py [--vocabulary 151936 ...] [--rounds 7] [--json]

Contestants take turns over rounds, so that a busy machine slows all alike; figures are medians over
rounds, ratios medians of each round's own ratio. Rows are too many for any cache and every
contestant starts on rows that it has not just warmed. The peer is compiled here from
`llama_loop.c` with `cc -O3 -march=native`, the limit from `read_bandwidth.c`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kldcloud.divergence import kernel
from kldcloud.divergence.base_rows import CodeRows, LogitRows, RowExtras

HERE = Path(__file__).parent
VOCABULARIES = (49_152, 151_936, 248_320)
STREAM_BYTES = 640_000_000
"""Codes and candidate logits together; several times the largest last-level caches of one core."""
DISTINCT_ROWS = 24
SLICES = 8

GOAL_OVER_LLAMA = 12.0
GOAL_OF_BANDWIDTH = 0.45

EXACT = "exact statistics, codes"
BOTH = "exact + llama.cpp's digits, codes"
BOTH_LOGITS = "exact + llama.cpp's digits, logits"
LLAMA = "llama.cpp's loop"
READ = "reading memory"
ENCODE = "encode and exact extras"
LLAMA_ENCODE = "llama.cpp's encoder"

F4 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rows:
    """What the contestants eat: n rows over V tokens."""

    base: F4
    codes: CodeRows
    candidate: F4
    tokens: npt.NDArray[np.int32]


def realistic_logits(rng: np.random.Generator, vocabulary: int) -> F4:
    """One base row: 75-95 % of it lies 16 nats or more below the top, whose p is 0.05 to 0.99."""
    rank = np.arange(vocabulary) / vocabulary
    row = 2.2 * rng.standard_t(7, vocabulary) - 1.5 * rank  # late tokens are the rare ones
    top = float(np.quantile(row, rng.uniform(0.75, 0.95))) + 16
    row = np.minimum(row, top - 7)
    p = rng.uniform(0.05, 0.99)
    ladder = (0.05 + 0.6 * p) * np.arange(200)
    left = max(1 / p - 1 - np.exp(row - top).sum(), 1e-3)
    ladder += max(0.02, -np.log(left / np.exp(-ladder).sum()))
    heads = rng.choice(vocabulary, 201, replace=False, p=_early(vocabulary))
    row[heads[0]] = top
    row[heads[1:]] = np.maximum(row[heads[1:]], top - ladder)
    return row.astype(np.float32)


def _early(vocabulary: int) -> npt.NDArray[np.float64]:
    weight = 1 / np.sqrt(1 + np.arange(vocabulary))
    result: npt.NDArray[np.float64] = weight / weight.sum()
    return result


def make_rows(vocabulary: int) -> Rows:
    """Enough rows to leave every cache: a few distinct ones, each many times over."""
    rng = np.random.default_rng(vocabulary)
    base = np.stack([realistic_logits(rng, vocabulary) for _ in range(DISTINCT_ROWS)])
    noise = rng.standard_normal(base.shape, dtype=np.float32)
    candidate = base + np.float32(0.2) * noise + np.float32(0.7)
    tokens = base.argmax(axis=1).astype(np.int32)
    tokens[::2] = rng.choice(vocabulary, len(tokens[::2]), p=_early(vocabulary))
    n = STREAM_BYTES // (6 * vocabulary) // SLICES * SLICES
    many = np.arange(n) % DISTINCT_ROWS
    few = kernel.encode(base, tokens)
    assert few.extras is not None
    extras = RowExtras(
        few.extras.normaliser[many], few.extras.tail[many], few.extras.target[many],
        few.extras.entropy[many], few.extras.top[many],
    )  # fmt: skip
    codes = CodeRows(few.words[many], vocabulary, extras)
    return Rows(base[many], codes, candidate[many], tokens[many])


def cut(rows: Rows, start: int, stop: int) -> Rows:
    """The rows start..stop, as views."""
    part = slice(start, stop)
    extras = rows.codes.extras
    assert extras is not None
    some = RowExtras(
        extras.normaliser[part], extras.tail[part], extras.target[part],
        extras.entropy[part], extras.top[part],
    )  # fmt: skip
    codes = CodeRows(rows.codes.words[part], rows.codes.vocabulary, some)
    return Rows(rows.base[part], codes, rows.candidate[part], rows.tokens[part])


def compiled(source: str, folder: Path) -> ctypes.CDLL:
    """A C file of this folder as a library, by the compiler that `cc` is."""
    library = folder / f"{source}.so"
    command = [os.environ.get("CC", "cc"), "-O3", "-march=native", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", library, HERE / source, "-lm"], check=True)
    return ctypes.CDLL(str(library))


def _at(array: npt.NDArray) -> ctypes.c_void_p:  # type: ignore[type-arg]
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def contestants(folder: Path) -> dict[str, tuple[int, Callable[[Rows], object]]]:
    """Name -> bytes of input consumed an entry, and what does the work on a slice."""
    loop, bandwidth = compiled("llama_loop.c", folder), compiled("read_bandwidth.c", folder)
    bandwidth.read_rows.restype = ctypes.c_uint64

    def ours(*, llama: bool, logits: bool = False) -> Callable[[Rows], object]:
        def work(rows: Rows) -> object:
            base = LogitRows(rows.base) if logits else rows.codes
            return kernel.token_statistics(base, rows.candidate, rows.tokens, llama_compat=llama)

        return work

    def score(rows: Rows) -> object:
        n, vocabulary = rows.candidate.shape
        out = np.empty((n, 3))
        loop.llama_score(
            _at(rows.candidate), _at(rows.codes.words), _at(rows.tokens),
            n, vocabulary, rows.codes.words.shape[1], _at(out),
        )  # fmt: skip
        return out

    def encode(rows: Rows) -> object:
        words = np.empty_like(rows.codes.words)
        loop.llama_encode(_at(rows.base), *rows.base.shape, words.shape[1], _at(words))
        return words

    def read(rows: Rows) -> object:
        a, b = rows.candidate, rows.codes.words
        return bandwidth.read_rows(
            _at(a), ctypes.c_int64(a.strides[0]), _at(b), ctypes.c_int64(b.strides[0]),
            ctypes.c_int64(len(a)),
        )  # fmt: skip

    return {
        READ: (6, read),
        EXACT: (6, ours(llama=False)),
        BOTH: (6, ours(llama=True)),
        LLAMA: (6, score),
        BOTH_LOGITS: (8, ours(llama=True, logits=True)),
        ENCODE: (4, lambda rows: kernel.encode(rows.base, rows.tokens)),
        LLAMA_ENCODE: (4, encode),
    }


def measure(
    rows: Rows, runners: dict[str, tuple[int, Callable[[Rows], object]]], rounds: int
) -> dict[str, list[float]]:
    """CPU seconds a row of each contestant in each round."""
    n = len(rows.tokens)
    for _, work in runners.values():
        work(cut(rows, 0, 2))  # compiles, and pages code in
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    step = n // SLICES
    for turn in range(rounds):
        for place, (name, (_, work)) in enumerate(runners.items()):
            part = cut(rows, (at := (turn + place) % SLICES * step), at + step)
            start = time.thread_time()  # waiting for a busy core is nobody's work
            work(part)
            seconds[name].append((time.thread_time() - start) / step)
    return seconds


def report(vocabulary: int, rows: Rows, seconds: dict[str, list[float]], consumed: dict[str, int]):  # noqa: ANN201 - a plain JSON tree
    """Figures of one vocabulary as a JSON tree."""

    def ratio(fast: str, slow: str) -> float:
        pairs = zip(seconds[fast], seconds[slow], strict=True)
        return statistics.median(b / a for a, b in pairs)

    codes = rows.codes.words[:DISTINCT_ROWS, 4 : 4 + vocabulary]
    return {
        "vocabulary": vocabulary,
        "rows": len(rows.tokens),
        "share_of_codes_0": round(float((codes == 0).mean()), 3),
        "contestants": {
            name: {
                "rows_per_s": round(1 / statistics.median(taken), 1),
                "gb_per_s": round(vocabulary * consumed[name] / statistics.median(taken) / 1e9, 2),
            }
            for name, taken in seconds.items()
        },
        "over_llama": {
            EXACT: round(ratio(EXACT, LLAMA), 2),
            BOTH: round(ratio(BOTH, LLAMA), 2),
            BOTH_LOGITS: round(ratio(BOTH_LOGITS, LLAMA), 2),
            ENCODE: round(ratio(ENCODE, LLAMA_ENCODE), 2),
        },
        "of_bandwidth": {
            EXACT: round(1 / ratio(READ, EXACT), 3),
            BOTH: round(1 / ratio(READ, BOTH), 3),
        },
    }


def verdict(value: float, goal: float) -> str:
    return f"goal {goal:g} {'met' if value >= goal else 'MISSED'}"


def show(figures: dict) -> None:  # type: ignore[type-arg]
    """One vocabulary's figures for people."""
    print(
        f"\nV = {figures['vocabulary']:,}, {figures['rows']} rows, "
        f"{figures['share_of_codes_0']:.0%} of the codes are 0"
    )
    for name, line in figures["contestants"].items():
        print(f"  {name:36}{line['rows_per_s']:10,.0f} rows/s{line['gb_per_s']:8.2f} GB/s")
    for name, value in figures["over_llama"].items():
        judged = verdict(value, GOAL_OVER_LLAMA) if name in {EXACT, BOTH} else ""
        print(f"  {name:36}{value:8.1f} x llama.cpp   {judged}")
    for name, value in figures["of_bandwidth"].items():
        print(f"  {name:36}{value:8.0%} of reading   {verdict(value, GOAL_OF_BANDWIDTH)}")


def machine() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=VOCABULARIES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="figures as JSON on stdout")
    arguments = parser.parse_args()
    result = {
        "machine": machine(),
        "kernel": kernel.implementation().__name__.rsplit(".", 1)[-1],
        "vocabularies": [],
    }
    if not arguments.json:
        print(f"{result['machine']}, {result['kernel']}, one core, CPU time")
    with tempfile.TemporaryDirectory() as folder:
        runners = contestants(Path(folder))
        consumed = {name: size for name, (size, _) in runners.items()}
        for vocabulary in arguments.vocabulary:
            rows = make_rows(vocabulary)
            figures = report(vocabulary, rows, measure(rows, runners, arguments.rounds), consumed)
            result["vocabularies"].append(figures)
            if not arguments.json:
                show(figures)
    if arguments.json:
        json.dump(result, sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
