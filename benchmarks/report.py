"""What reducing a run and writing its reports take, at two sizes.

    python benchmarks/report.py [--sizes 10x580 1x39216] [--json]

A size is candidates x chunks of 512 tokens (255 scored positions each): 10x580 is ten quants on
WikiText-2 (148K token records each), 1x39216 has 1e7 records. Partials are made up of seeded noise
and committed to a folder beforehand; then `reduce_run` and every report format run in a process of
their own, whose CPU time and peak memory count. The peer is pandas on the same partials: read them,
and the same means and quantiles by groupby, no check of any kind. The limit is pyarrow alone,
reading the columns and writing them again as the run's tokens.parquet.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from kernel import machine

from kldcloud.corpus.chunks import Shard, cut_shards
from kldcloud.corpus.token_texts import TokenTexts
from kldcloud.divergence.partial import Partial, PartialIdentity
from kldcloud.divergence.records import TokenRecords
from kldcloud.models.gguf_header import GgufHeader
from kldcloud.models.llama_engine import LlamaOptions
from kldcloud.pipeline.corpora import ChunkedCorpus
from kldcloud.pipeline.model_files import ModelFile
from kldcloud.pipeline.plan import SweepPlan
from kldcloud.pipeline.prepare import PreparedSweep
from kldcloud.spec.job import SweepJob
from kldcloud.staging.choose import EncodingChoice
from kldcloud.store import Store, open_store

CONTEXT, ROWS, SHARD = 512, 255, 8
VOCABULARY = 150_000
SAME_TOP = 0.9
RUN = "report-benchmark"
SIZES = ("10x580", "1x39216")
CPU_GOAL = 10.0
"""Seconds, for the first size."""
MEMORY_GOAL = 2 << 30
"""Bytes, for the second."""
WAYS = ("kldcloud", "pandas", "arrow")


@dataclass(frozen=True, slots=True)
class Size:
    """Candidates on one corpus of so many chunks."""

    candidates: int
    chunks: int

    @property
    def records(self) -> int:
        return self.candidates * self.chunks * ROWS

    @property
    def names(self) -> list[str]:
        return [f"Q{at}" for at in range(self.candidates)]

    @property
    def shards(self) -> list[Shard]:
        return list(cut_shards(self.chunks, SHARD))


def main() -> int:
    """Run every way at every size and print them side by side."""
    parser = argparse.ArgumentParser(description="Reducing and reporting, beside pandas and arrow.")
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = [Size(*map(int, text.split("x"))) for text in arguments.sizes]
    if arguments.way:
        print(json.dumps(_measure(arguments.way, sizes[0], arguments.folder)))
        return 0
    found = {}
    if not arguments.json:
        print(machine())
    for text, size in zip(arguments.sizes, sizes, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            _write_partials(open_store(folder), size)
            found[text] = {way: _in_a_process(way, text, folder) for way in WAYS}
        if not arguments.json:
            _show(size, found[text])
    if arguments.json:
        print(json.dumps(found, indent=2))
    return 0


def _show(size: Size, found: dict[str, dict[str, Any]]) -> None:
    ours = found["kldcloud"]
    print(f"\n{size.candidates} candidates x {size.chunks:,} chunks: {size.records:,} records")
    for way in WAYS:
        row = found[way]
        print(f"  {way:10}{row['cpu']:8.2f} CPU s{row['peak'] / 2**20:8.0f} MiB at most")
    for part, seconds in ours["parts"].items():
        print(f"    of ours, {part:20}{seconds:8.2f} s")
    peer, limit = (found[way]["cpu"] for way in WAYS[1:])
    print(
        f"  ratio of CPU, kldcloud / pandas {ours['cpu'] / peer:.2f}, / arrow alone "
        f"{ours['cpu'] / limit:.2f}"
    )
    if size.records < 2_000_000:  # noqa: PLR2004 - ten quants on WikiText-2
        print(f"  goal {CPU_GOAL:.0f} CPU s: {'met' if ours['cpu'] < CPU_GOAL else 'MISSED'}")
    fits = ours["peak"] < MEMORY_GOAL
    print(f"  goal {MEMORY_GOAL / 2**30:.0f} GiB: {'met' if fits else 'MISSED'}")


def _in_a_process(way: str, size: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--sizes", size, "--way", way, "--folder", folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _measure(way: str, size: Size, folder: Path) -> dict[str, Any]:
    parts = {"kldcloud": _ours, "pandas": _pandas, "arrow": _arrow}[way](size, folder)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime
    return {"cpu": cpu, "peak": usage.ru_maxrss * 1024, "parts": parts}


def _ours(size: Size, folder: Path) -> dict[str, float]:
    from kldcloud.pipeline.reduce import reduce_run
    from kldcloud.report.render import FORMATS, render
    from kldcloud.report.summary_file import parse_summary

    times = {"start": time.process_time()}
    plan, shards = _plan(size), {"corpus": size.shards}
    reduced = reduce_run(open_store(str(folder)), plan, _texts(), shards, {})
    times["reduce"] = time.process_time()
    summary = parse_summary(reduced.summary)
    times["parse summary"] = time.process_time()
    for name in FORMATS:
        render(summary, name)
        times[f"format {name}"] = time.process_time()
    values = list(times.values())
    steps = dict(zip(list(times)[1:], np.diff(values).tolist(), strict=True))
    return {"imports": values[0], **steps}


def _pandas(size: Size, folder: Path) -> dict[str, float]:
    import pandas as pd

    for name in size.names:
        frame = pd.concat(pd.read_parquet(path) for path in _files(folder, name))
        frame["change"] = np.exp(-frame["nll"]) - np.exp(-frame["nll_base"])
        frame["same"] = frame["top"] == frame["top_base"]
        frame[["kld", "change", "llama_kld"]].quantile([0.001, 0.01, 0.05, 0.5, 0.95, 0.99, 0.999])
        columns = ["kld", "reverse_kld", "nll", "nll_base", "entropy_base", "change", "same"]
        frame.groupby("chunk")[columns].mean()
    return {}


def _arrow(size: Size, folder: Path) -> dict[str, float]:
    import pyarrow.parquet as pq

    writer = None
    with tempfile.TemporaryDirectory() as out:
        for name in size.names:
            for path in _files(folder, name):
                table = pq.read_table(path, use_threads=False).replace_schema_metadata(None)
                if writer is None:
                    writer = pq.ParquetWriter(
                        Path(out, "all.parquet"), table.schema, compression="zstd"
                    )
                writer.write_table(table)
        assert writer is not None
        writer.close()
    return {}


def _files(folder: Path, candidate: str) -> list[Path]:
    return sorted((folder / "runs" / RUN / "partials" / candidate).rglob("*.parquet"))


def _write_partials(store: Store, size: Size) -> None:
    plan = _plan(size)
    for seed, name in enumerate(size.names):
        random = np.random.default_rng(seed)
        for shard in size.shards:
            identity = PartialIdentity(RUN, name, "corpus", shard.first, shard.count)
            partial = Partial.from_records(_records(random, shard), identity=identity)
            store.write_new(plan.partial_key(name, "corpus", shard), partial.to_bytes())


def _records(random: np.random.Generator, shard: Shard) -> TokenRecords:
    count = shard.count * ROWS
    nll_base = random.gamma(1.2, 1.8, count)
    nll = np.abs(nll_base + random.normal(0, 0.2, count))
    kld = np.exp(random.normal(-4, 1.5, count))
    top_base = random.integers(0, VOCABULARY, count).astype(np.int32)
    return TokenRecords(
        chunk=np.repeat(np.arange(shard.first, shard.first + shard.count), ROWS).astype(np.int32),
        position=np.tile(np.arange(CONTEXT // 2, CONTEXT - 1), shard.count).astype(np.int32),
        token=random.integers(0, VOCABULARY, count).astype(np.int32),
        kld=kld,
        reverse_kld=kld * random.uniform(0.8, 1.3, count),
        nll=nll,
        nll_base=nll_base,
        entropy_base=random.gamma(2.0, 1.0, count),
        top=np.where(random.random(count) < SAME_TOP, top_base, 7).astype(np.int32),
        top_base=top_base,
        llama_kld=kld - 1e-4 * random.random(count),
        llama_nll=nll.astype(np.float32),
        llama_nll_base=nll_base.astype(np.float32),
        llama_top_base=top_base,
    )


def _texts() -> TokenTexts:
    """A vocabulary that has the records' tokens."""
    return TokenTexts([b" token"] * VOCABULARY, np.zeros(VOCABULARY, np.bool_))


def _plan(size: Size) -> SweepPlan:
    """As much of a plan as a reduction reads."""
    job = SweepJob.model_validate(
        {
            "kind": "sweep",
            "name": RUN,
            "base": {"model": "base.gguf"},
            "candidates": [{"model": f"{name}.gguf", "name": name} for name in size.names],
            "corpora": [{"name": "corpus", "text": "corpus.txt"}],
        }
    )
    header = GgufHeader(3, {"general.architecture": "llama"}, {}, 1 << 20)
    base, *models = (
        ModelFile(name, f"{name}.gguf", Path(f"{name}.gguf"), "0" * 64, header)
        for name in ("base", *size.names)
    )
    chunks = np.zeros((size.chunks, CONTEXT), np.int32)
    corpus = ChunkedCorpus("corpus", "0" * 64, chunks.size, chunks)
    prepared = PreparedSweep(job, base, tuple(models), (corpus,))
    choice = EncodingChoice("logits", "made up")
    return SweepPlan(RUN, prepared, choice, (), LlamaOptions(), {}, {}, llama_compat=True)


if __name__ == "__main__":
    sys.exit(main())
