"""A corpus of full size at a full vocabulary: 580 chunks of 512 tokens, V = 248,320, on two nodes.

    python benchmarks/full_corpus.py [--chunks 580] [--width 64] [--quant Q4_0] [--skip-one-node]
                                     [--json]

The model is a real llama.cpp one with that vocabulary and a small width, made here (see
`wide_model.py`): what depends on V - the output head, staging, rebuilt logits, statistics - is as
large as it gets, what depends on the model's layers is next to nothing. SkyPilot launches the sweep
on the tests' two-node Slurm lab (Linux, as root), base and partials go through its S3 server; then
the same job runs on this machine with a folder for a store, and both summaries must be the same
bytes. The peer is llama.cpp's .kld file, whose size is exact arithmetic.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from full_corpus_runs import Outcome, lab_obstacle, on_this_machine, on_two_nodes
from kernel import machine
from wide_model import WideModel, cached_files

from kldcloud.staging.kld_layout import KldHeader
from kldcloud.store.digest import sha256_bytes

CHUNKS = 580
CONTEXT = 512
VOCABULARY = 248_320
LAYERS = 2

GOAL_FEWER_BYTES = 100.0
HELD_CHUNKS = 4
"""Chunks of logits that a worker holds at most, float32 [n_ctx/2, V] each: the result of
llama.cpp's graph, its copy for the caller, base rows rebuilt from a stage, and in the worker that
tried hidden states before anything was staged another such buffer."""
HELD_MODELS = 2
"""In sizes of the base model's file: a model loaded (mapped, and partly repacked), and the stage's
output head."""
PROCESS_BYTES = 512 << 20
"""And on top: the interpreter with Ray, numba, boto3 and the tokenizer's tables."""
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run comes to; rows are scored positions, of the base or of a candidate."""

    staging_rows_a_second: float
    measuring_rows_a_second: float
    fewer_bytes: float
    peak_bytes: float


def main() -> int:
    """Run both and print the figures; 1 if the summaries differ or a bound does not hold."""
    arguments = _arguments()
    if problem := lab_obstacle():
        print(problem, file=sys.stderr)
        return 2
    # Killed politely, it takes lab, launch and folders along, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    load_before = os.getloadavg()[0]
    wide = WideModel(VOCABULARY, arguments.width, LAYERS, CHUNKS * CONTEXT)
    _tell("making the model")
    files = cached_files(wide)
    bound = memory_bound(files.model.stat().st_size)
    say = _nothing if arguments.json else print
    say(_heading(arguments, files.model.stat().st_size, load_before))
    with tempfile.TemporaryDirectory(prefix="kld-full-") as folder:
        job = Path(folder) / "job.yaml"
        job.write_text(_job(files.model, files.text, arguments))
        visible = [Path(folder), files.model.parent]
        two = on_two_nodes(job, visible, Path(folder) / "two-nodes.log", _tell)
        say(_text("two nodes, SkyPilot, S3", two, arguments.chunks, bound))
        one = None
        if not arguments.skip_one_node:
            store = Path(folder) / "store"
            one = on_this_machine(job, store, Path(folder) / "one-node.log", _tell)
            say(_text("one node, folder", one, arguments.chunks, bound))
    runs = [run for run in (two, one) if run is not None]
    equal = one is None or (one.run, one.summary) == (two.run, two.summary)
    bounded = all(max(run.peak_bytes) <= bound for run in runs)
    if one is not None:
        say(_verdict(two, one))
    if arguments.json:
        print(json.dumps(_facts(arguments, runs, bound, equal=equal), indent=2))
    return 0 if equal and bounded else 1


def memory_bound(model_bytes: int) -> int:
    """Resident bytes that no worker may pass, however many chunks there are."""
    logits = (CONTEXT // 2) * VOCABULARY * 4
    return PROCESS_BYTES + HELD_MODELS * model_bytes + HELD_CHUNKS * logits


def figures(run: Outcome, chunks: int) -> Figures:
    """The figures of a run with one candidate."""
    header = KldHeader(n_ctx=CONTEXT, n_vocab=VOCABULARY, n_chunks=chunks)
    rows = chunks * header.rows_per_chunk
    return Figures(
        rows / run.staging_seconds,
        rows / run.measuring_seconds,
        header.expected_bytes / run.staged_bytes,
        max(run.peak_bytes),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--chunks", type=int, default=CHUNKS, choices=range(2, CHUNKS + 1), metavar="N"
    )
    parser.add_argument("--width", type=int, default=64, help="d; a multiple of 64")
    parser.add_argument("--quant", default="Q4_0", help="the candidate's type")
    parser.add_argument("--skip-one-node", action="store_true", help="only the lab's two nodes")
    parser.add_argument("--json", action="store_true", help="figures as JSON on stdout")
    return parser.parse_args()


def _job(model: Path, text: Path, arguments: argparse.Namespace) -> str:
    corpus = {"name": "words", "text": str(text), "context": CONTEXT, "chunks": arguments.chunks}
    job = {
        "kind": "sweep",
        "name": "full-corpus",
        "base": {"model": str(model)},
        "candidates": [{"quantize": arguments.quant}],
        "corpora": [corpus],
        # Not left to the plan, which weighs a folder and S3 differently.
        "encoding": "hidden",
    }
    return yaml.safe_dump(job)


def _heading(arguments: argparse.Namespace, model_bytes: int, load: float) -> str:
    chunks = arguments.chunks
    lines = [
        (
            f"{chunks} chunks of {CONTEXT} = {chunks * CONTEXT:,} tokens, "
            f"{chunks * (CONTEXT // 2 - 1):,} scored; V = {VOCABULARY:,}, d = {arguments.width}, "
            f"F16 base of {model_bytes / 1e6:.0f} MB, candidate {arguments.quant}"
        ),
        f"{machine()}, {len(os.sched_getaffinity(0))} cores; load before: {load:.1f}",
    ]
    return "\n".join(lines)


def _text(what: str, run: Outcome, chunks: int, bound: int) -> str:
    header = KldHeader(n_ctx=CONTEXT, n_vocab=VOCABULARY, n_chunks=chunks)
    found = figures(run, chunks)
    goal = f"goal {GOAL_FEWER_BYTES:.0f}: "
    goal += "met" if found.fewer_bytes >= GOAL_FEWER_BYTES else "MISSED"
    if chunks < CHUNKS:
        goal = f"the head is staged once: more at {CHUNKS} chunks"
    peaks = ", ".join(f"{peak / GIB:.2f}" for peak in run.peak_bytes)
    held = "holds" if found.peak_bytes <= bound else "BROKEN"
    lines = [
        f"{what}: run {run.run}",
        (f"  staging    {found.staging_rows_a_second:8.0f} rows/s  {run.staging_seconds:8.0f} s"),
        (
            f"  measuring  {found.measuring_rows_a_second:8.0f} rows/s  "
            f"{run.measuring_seconds:8.0f} s"
        ),
        (
            f"  whole run {run.run_seconds:.0f} s, the launch {run.launch_seconds:.0f} s; CPU: "
            f"workers {run.worker_cpu_seconds:.0f} s, driver {run.driver_cpu_seconds:.1f} s"
        ),
        (
            f"  staged {run.staged_bytes / 1e6:.1f} MB, {found.fewer_bytes:,.0f} times fewer than "
            f"the .kld's {header.expected_bytes:,} bytes "
            f"({header.expected_bytes / GIB:.1f} GiB); {goal}"
        ),
        f"  peak memory of a worker {peaks} GiB; bound {bound / GIB:.2f} GiB: {held}",
    ]
    lines += [
        f"  {node} received {received / 1e6:.0f} MB, sent {sent / 1e6:.0f} MB (set-up included)"
        for node, (received, sent) in run.moved.items()
    ]
    return "\n".join(lines)


def _verdict(two: Outcome, one: Outcome) -> str:
    return "\n".join(
        [
            f"engine equal: {one.engine == two.engine}; run id equal: {one.run == two.run}",
            (
                f"summary.json equal: {one.summary == two.summary} ({len(two.summary):,} bytes, "
                f"sha256 {sha256_bytes(two.summary)[:16]})"
            ),
        ]
    )


def _facts(
    arguments: argparse.Namespace, runs: list[Outcome], bound: int, *, equal: bool
) -> dict[str, object]:
    kept = [{k: v for k, v in asdict(run).items() if k != "summary"} for run in runs]
    numbers = [asdict(figures(run, arguments.chunks)) for run in runs]
    return {
        "chunks": arguments.chunks,
        "vocabulary": VOCABULARY,
        "width": arguments.width,
        "quant": arguments.quant,
        "memory_bound": bound,
        "summaries_equal": equal,
        "runs": [{**run, **number} for run, number in zip(kept, numbers, strict=True)],
    }


def _tell(what: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {what}", file=sys.stderr, flush=True)


def _nothing(_: str) -> None:
    """Where figures go as JSON, at the end, no text goes."""


if __name__ == "__main__":
    sys.exit(main())
