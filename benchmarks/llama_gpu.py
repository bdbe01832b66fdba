"""Measuring a GGUF candidate where a GPU evaluates: tokens a second beside the evaluation alone.

    python benchmarks/llama_gpu.py [--model PATH] [--vocabulary 128256] [--forward-ms 50] [--json]

With --model, llama.cpp evaluates that GGUF with all layers on the GPU that its build has. Without,
a stand-in takes as long as is asked, with the CPU free meanwhile, and hands out ready logits as
llama.cpp does, in two buffers in turn: this shows what the CPU's part costs on a machine without
a GPU. That part is a worker's: the base's rows are read from a store, verified and inflated, and
compared. Beside it, the same with nothing done ahead, and logits copied out of a single buffer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from kernel import machine, realistic_logits

from kldcloud.corpus.chunks import ChunkShape, Shard, Tokens
from kldcloud.models.engine import ChunkOutput, Engine
from kldcloud.models.gguf_header import read_gguf_header
from kldcloud.models.llama_engine import LlamaEngine, LlamaOptions
from kldcloud.models.llama_library import free_on_gpus
from kldcloud.pipeline.ahead import base_rows, evaluated
from kldcloud.pipeline.compared import compare_logits
from kldcloud.staging.encodings import LogitsEncoding
from kldcloud.staging.stage import StageIdentity, finish_stage, tokens_bytes, write_shard
from kldcloud.staging.stage_reader import StageReader
from kldcloud.store import open_store
from kldcloud.store.digest import sha256_bytes

GOAL = 0.90
NOISE = 0.2
DISTINCT_ROWS = 16
FORWARD, OURS, BOTH, BEFORE = (
    *("forward", "kldcloud", "kldcloud + llama.cpp's"),
    "nothing ahead",
)


@dataclass(frozen=True, slots=True)
class Size:
    """What is measured."""

    vocabulary: int
    context: int
    chunks: int
    threads: int


class StandIn:
    """An engine of which every evaluation takes so many seconds of nobody's time."""

    on_gpu = True
    kept = 2

    def __init__(self, logits: npt.NDArray[np.float32], seconds: float) -> None:
        self._buffers = [logits, logits.copy()]
        self._seconds, self._turn = seconds, 0

    def evaluate(self, tokens: Tokens) -> ChunkOutput:  # noqa: ARG002
        time.sleep(self._seconds)
        self._turn = 1 - self._turn
        return ChunkOutput(self._buffers[self._turn], None)


class OneBuffer:
    """An engine that keeps the logits of its last chunk only; whoever wants them longer copies."""

    on_gpu = True
    kept = 1

    def __init__(self, engine: Engine) -> None:
        self.evaluate = engine.evaluate


def logits_of_chunk(rows: int, vocabulary: int) -> npt.NDArray[np.float32]:
    """A base's logits, float32 [rows, V]: a few distributions, and other numbers in every row."""
    random = np.random.default_rng(vocabulary)
    few = np.stack([realistic_logits(random, vocabulary) for _ in range(min(DISTINCT_ROWS, rows))])
    noise = random.standard_normal((rows, vocabulary), np.float32)
    return few[np.arange(rows) % len(few)] + np.float32(NOISE) * noise


def stage(place: Path, size: Size, tokens: Tokens, logits: npt.NDArray[np.float32]) -> StageReader:
    """A base stage of as many chunks as wanted, each of the same logits."""
    shape = ChunkShape(size.context)
    identity = StageIdentity(
        base_sha256="0" * 64,
        tokens_sha256=sha256_bytes(tokens_bytes(tokens)),
        context=size.context,
        chunks=size.chunks,
        vocabulary=size.vocabulary,
        encoding="logits",
        engine={"name": "benchmark"},
    )
    store = open_store(str(place))
    encoding = LogitsEncoding(identity.shape, threads=size.threads)
    frame = encoding.encode(ChunkOutput(logits, None), shape.next_tokens(tokens[0]))
    shard = Shard(0, size.chunks)
    write_shard(store, identity, shard, [frame] * size.chunks)
    finish_stage(store, identity, [shard], tokens, None)
    return StageReader(store, identity.key, threads=size.threads)


def measure(engine: Engine, reader: StageReader, size: Size, rounds: int) -> dict[str, float]:
    """Tokens a second of each contestant; they take turns."""
    shape, tokens = ChunkShape(size.context), reader.tokens()
    chunks = range(size.chunks)

    def forward() -> None:
        for chunk in tokens:
            engine.evaluate(chunk)

    def compared(engine: Engine, *, ahead: bool, llama: bool) -> None:
        bases = base_rows(reader, chunks, ahead=ahead)
        each: Iterator[npt.NDArray[np.float32]] = evaluated(engine, list(tokens))
        for chunk, base, logits in zip(tokens, bases, each, strict=True):
            following = shape.next_tokens(chunk)
            compare_logits(base, logits, following, threads=size.threads, llama_compat=llama)

    one = OneBuffer(engine)
    contestants: dict[str, Callable[[], None]] = {
        FORWARD: forward,
        OURS: lambda: compared(engine, ahead=True, llama=False),
        BOTH: lambda: compared(engine, ahead=True, llama=True),
        BEFORE: lambda: compared(one, ahead=False, llama=True),  # type: ignore[arg-type]
    }
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for at in range(rounds + 1):
        for name, work in contestants.items():
            start = time.perf_counter()
            work()
            if at:  # the first compiles, and fills caches
                taken[name].append(time.perf_counter() - start)
    count = size.chunks * size.context
    return {name: count / statistics.median(each) for name, each in taken.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a GGUF for llama.cpp, on its GPU")
    parser.add_argument("--vocabulary", type=int, default=128_256, help="of the stand-in")
    parser.add_argument("--forward-ms", type=float, default=50.0, help="of the stand-in, a chunk")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="figures as JSON on stdout")
    arguments = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    vocabulary = arguments.vocabulary
    if arguments.model:
        if not free_on_gpus():
            print("this build of llama.cpp sees no GPU; without --model one is stood in for",
                  file=sys.stderr)  # fmt: skip
            return 2
        vocabulary = read_gguf_header(arguments.model).vocabulary_size
    size = Size(vocabulary, arguments.context, arguments.chunks, threads)
    logits = logits_of_chunk(ChunkShape(size.context).rows, vocabulary)
    random = np.random.default_rng(0)
    tokens = random.integers(0, vocabulary, (size.chunks, size.context)).astype(np.int32)
    engine: Engine
    if arguments.model:
        engine = LlamaEngine(arguments.model, size.context, LlamaOptions(n_gpu_layers=-1))
    else:
        engine = StandIn(logits + np.float32(0.1), arguments.forward_ms / 1e3)  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as place:
        found = measure(engine, stage(Path(place), size, tokens, logits), size, arguments.rounds)
    by = arguments.model.name if arguments.model else f"stand-in, {arguments.forward_ms:g} ms"
    if arguments.json:
        facts = {"machine": machine(), "evaluated_by": by, "size": asdict(size)}
        print(json.dumps(facts | {"tokens_per_second": found}, indent=1))
        return 0
    print(f"{machine()}, {threads} threads; {by} a chunk; {size}")
    for name, rate in found.items():
        print(f"  {name:24}{rate:12,.0f} tokens/s{rate / found[FORWARD]:8.0%} of the forward pass")
    share = found[BOTH] / found[FORWARD]
    print(f"  goal {GOAL:.0%} {'met' if share >= GOAL else 'MISSED'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
