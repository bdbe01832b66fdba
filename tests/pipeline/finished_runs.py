"""Finished runs as their stores hold them, made of synthetic records instead of models."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kldcloud.corpus.chunks import cut_shards
from kldcloud.divergence.partial import Partial, PartialIdentity
from kldcloud.divergence.records import TokenRecords, TokenWriter
from kldcloud.divergence.summary import ChunkMeans, Reduction
from kldcloud.pipeline.facts import comparison_facts
from kldcloud.pipeline.runs import FoundRun
from kldcloud.report.summary_file import dump_summary
from kldcloud.staging.stage import canonical_json
from kldcloud.store.base import Store
from tests.divergence.synthetic_records import ROWS, records

CHUNKS = 10
SHARD = 4
CONTEXT = 2 * ROWS + 2
STAGE = "5" * 32
ENGINE = {"name": "llama.cpp", "version": "0.3.36", "backend": "CPU"}


@dataclass(frozen=True, slots=True)
class Model:
    """A candidate: its name, the file behind it, and how far it is from the base.

    Attributes:
        name: what its run calls it.
        file: stands for its content; equal files give equal numbers.
        level: by how much it multiplies the KL divergences that chunks have in common.
        failed: whether its measurements failed.
    """

    name: str
    file: str
    level: float
    failed: bool = False

    @property
    def sha256(self) -> str:
        return self.file.encode().hex().ljust(64, "0")[:64]


def token_records(model: Model, chunks: int = CHUNKS, corpus: str = "text") -> TokenRecords:
    """What a model yields on a corpus; the same for the same file, in whichever run."""
    shared = records(chunks, seed=sum(corpus.encode()))
    own = np.random.default_rng(sum(model.file.encode()))
    noise = np.exp(own.normal(0, 0.05, len(shared)))
    return replace(shared, kld=shared.kld * noise * model.level)


def finished_run(
    store: Store,
    run: str,
    models: Sequence[Model],
    *,
    corpora: Mapping[str, int] | None = None,
    stage: str = STAGE,
    **changes: Any,
) -> FoundRun:
    """Leave all that a run leaves behind.

    Args:
        store: where.
        run: its id.
        models: its candidates.
        corpora: name -> chunks.
        stage: beginning of the keys of its base stages.
        changes: to fields of its summary.
    """
    corpora = {"text": CHUNKS} if corpora is None else corpora
    results: list[dict[str, Any]] = []
    comparisons: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.parquet"
        with TokenWriter(tokens, group_rows=100) as writer:
            for corpus, chunks in corpora.items():
                measured: dict[str, ChunkMeans] = {}
                for model in models:
                    result = None
                    if not model.failed:
                        whole = token_records(model, chunks, corpus)
                        reduction = _commit(store, run, model.name, corpus, whole)
                        measured[model.name] = reduction.chunk_means("kld")
                        result = reduction.result().to_json_dict()
                        writer.append(whole, candidate=model.name, corpus=corpus)
                    results.append(
                        {
                            "candidate": model.name,
                            "corpus": corpus,
                            "status": "failed" if model.failed else "complete",
                            "error": "q.gguf: ends inside a tensor" if model.failed else None,
                            "result": result,
                        }
                    )
                if measured:
                    comparisons.append(comparison_facts(corpus, measured))
        failed = any(model.failed for model in models)
        if not failed:
            store.write_new_file(f"runs/{run}/tokens.parquet", tokens)
    summary = {
        "schema": "kldcloud.summary/2",
        "run": run,
        "name": run.rpartition("-")[0],
        "status": "partial" if failed else "complete",
        "kldcloud": "0.1.0",
        "engine": ENGINE,
        "encoding": "logits",
        "llama_compat": True,
        "base": {"name": "base", "sha256": "ba" * 32, **_sizes()},
        "corpora": [
            {
                "name": corpus,
                "sha256": corpus.encode().hex().ljust(64, "0"),
                "tokens": CONTEXT * chunks + 5,
                "context": CONTEXT,
                "chunks": chunks,
                "scored": ROWS * chunks,
            }
            for corpus, chunks in corpora.items()
        ],
        "candidates": [
            {"name": each.name, "file": f"{each.name}.gguf", "sha256": each.sha256, **_sizes()}
            for each in models
        ],
        "results": results,
        "comparisons": comparisons,
    } | changes
    name = "summary-partial.json" if failed else "summary.json"
    store.write(f"runs/{run}/{name}", dump_summary(summary))
    note_plan(store, run, {corpus: f"{stage}{at}" for at, corpus in enumerate(corpora)})
    return FoundRun(run, store)


def note_plan(store: Store, run: str, stages: Mapping[str, str]) -> None:
    facts = {"run": run, "encoding": "logits", "stages": [list(each) for each in stages.items()]}
    store.write(f"runs/{run}/plan.json", canonical_json(facts))


def change_summary(found: FoundRun, **changes: Any) -> None:
    """Say something else in a run's summary."""
    key = f"{found.prefix}/summary.json"
    summary = json.loads(found.store.read(key))
    found.store.write(key, dump_summary(summary | changes))


def partial_keys(found: FoundRun) -> list[str]:
    return [info.key for info in found.store.list(f"{found.prefix}/partials/")]


def _commit(store: Store, run: str, candidate: str, corpus: str, whole: TokenRecords) -> Reduction:
    chunks = int(whole.chunk[-1]) + 1
    reduction = Reduction(chunks)
    for shard in cut_shards(chunks, SHARD):
        rows = (whole.chunk >= shard.first) & (whole.chunk < shard.first + shard.count)
        identity = PartialIdentity(run, candidate, corpus, shard.first, shard.count)
        partial = Partial.from_records(whole.select(rows), identity=identity)
        key = f"runs/{run}/partials/{candidate}/{corpus}/{shard.label}.parquet"
        store.write_new(key, partial.to_bytes())
        reduction.add(partial)
    return reduction


def _sizes() -> dict[str, Any]:
    return {"bytes": 100_000_000, "parameters": 134_000_000, "bits_per_weight": 6.0}
