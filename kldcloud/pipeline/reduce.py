"""Reduce: committed partials, in shard order, to the run's summary and token records."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any, Final

import numpy as np

from kldcloud import __version__
from kldcloud.corpus.chunks import Shard
from kldcloud.divergence.comparison import compare
from kldcloud.divergence.partial import Partial, PartialIdentity
from kldcloud.divergence.records import TokenWriter
from kldcloud.divergence.summary import Reduction
from kldcloud.pipeline.dispatch import Failure
from kldcloud.pipeline.plan import SweepPlan
from kldcloud.pipeline.prepare import ChunkedCorpus, KldBase, ModelFile
from kldcloud.report.summary_file import SCHEMA, dump_summary
from kldcloud.store.base import Store

MAX_PARTIAL_BYTES = 1 << 32
MOST_FULLY_PAIRED: Final = 64
"""Candidates: of more, the summary keeps neighbours' pairs alone, though all are tested."""


def group_name(candidate: str, corpus: str) -> str:
    """What a candidate's work on one corpus is called."""
    return f"{candidate} on {corpus}"


def reduce_run(
    store: Store,
    plan: SweepPlan,
    shards: Mapping[str, Sequence[Shard]],
    failures: Mapping[str, Failure],
) -> bytes:
    """Merge what is committed, write tokens.parquet, and return the summary's bytes.

    Args:
        store: where the partials are.
        plan: the run's.
        shards: of each corpus by name.
        failures: groups that were given up; they appear as failed.

    Raises:
        FormatError: if a partial is not what its key says.
    """
    results: list[dict[str, Any]] = []
    comparisons: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.parquet"
        with TokenWriter(tokens) as writer:
            for corpus in plan.prepared.corpora:
                reductions: dict[str, Reduction] = {}
                for candidate in plan.prepared.candidates:
                    failure = failures.get(group_name(candidate.name, corpus.name))
                    result = None
                    if failure is None:
                        reduction = _reduce_one(
                            store, plan, candidate.name, corpus, shards[corpus.name], writer
                        )
                        reductions[candidate.name] = reduction
                        result = reduction.result().to_json_dict()
                    results.append(
                        {
                            "candidate": candidate.name,
                            "corpus": corpus.name,
                            "status": "failed" if failure else "complete",
                            "error": f"{failure.key}: {failure.cause}" if failure else None,
                            "result": result,
                        }
                    )
                if reductions:
                    comparisons.append(compare_on(corpus.name, reductions))
        if not failures:
            store.write_new_file(f"{plan.prefix}/tokens.parquet", tokens)
    return dump_summary(_summary(plan, results, comparisons, partial=bool(failures)))


def _reduce_one(
    store: Store,
    plan: SweepPlan,
    candidate: str,
    corpus: ChunkedCorpus,
    shards: Sequence[Shard],
    writer: TokenWriter,
) -> Reduction:
    reduction = Reduction(corpus.count)
    for shard in shards:
        key = plan.partial_key(candidate, corpus.name, shard)
        partial = Partial.from_bytes(
            store.read(key, limit=MAX_PARTIAL_BYTES),
            expected=PartialIdentity(plan.run, candidate, corpus.name, shard.first, shard.count),
            max_rows=shard.count * corpus.shape.rows,
            name=key,
        )
        reduction.add(partial)
        writer.append(partial.records, candidate=candidate, corpus=corpus.name)
    return reduction


def compare_on(corpus: str, reductions: Mapping[str, Reduction]) -> dict[str, Any]:
    """A comparison as summary.json has it, of the candidates that were measured on one corpus."""
    names = list(reductions)
    sizes = reductions[names[0]].chunk_sizes
    comparison = compare(np.stack([each.chunk_means("kld") for each in reductions.values()]), sizes)
    pairs = comparison.pairs
    if len(names) > MOST_FULLY_PAIRED:
        pairs = tuple(comparison.neighbours())
    return {
        "corpus": corpus,
        "ranks": [
            {"candidate": names[at], **asdict(comparison.ranks[at])} for at in comparison.order
        ],
        "pairs_tested": len(comparison.pairs),
        "pairs": [
            {
                "better": names[pair.better],
                "worse": names[pair.worse],
                "difference": pair.value,
                "error": pair.error,
                "interval95": pair.interval95 and astuple(pair.interval95),
                "p": pair.p,
                "p_holm": pair.p_holm,
                "distinguishable": pair.distinguishable,
            }
            for pair in pairs
        ],
    }


def _summary(
    plan: SweepPlan,
    results: Sequence[Mapping[str, Any]],
    comparisons: Sequence[Mapping[str, Any]],
    *,
    partial: bool,
) -> dict[str, Any]:
    prepared = plan.prepared
    return {
        "schema": SCHEMA,
        "run": plan.run,
        "name": prepared.job.name,
        "status": "partial" if partial else "complete",
        "kldcloud": __version__,
        "engine": dict(plan.engine),
        "encoding": plan.choice.encoding,
        "llama_compat": plan.llama_compat,
        "base": _base(prepared.base),
        "corpora": [
            {
                "name": corpus.name,
                "sha256": corpus.text_sha256,
                "tokens": corpus.text_tokens,
                "context": corpus.context,
                "chunks": corpus.count,
                "scored": corpus.scored,
            }
            for corpus in prepared.corpora
        ],
        "candidates": [
            {"file": candidate.file, **_model(candidate)} for candidate in prepared.candidates
        ],
        "results": list(results),
        "comparisons": list(comparisons),
    }


def _base(base: ModelFile | KldBase) -> dict[str, Any]:
    if isinstance(base, ModelFile):
        return _model(base)
    return {
        "name": base.name,
        "sha256": base.sha256,
        "bytes": base.header.expected_bytes,
        "parameters": None,
        "bits_per_weight": None,
    }


def _model(model: ModelFile) -> dict[str, Any]:
    return {
        "name": model.name,
        "sha256": model.sha256,
        "bytes": model.header.file_bytes,
        "parameters": model.header.parameters,
        "bits_per_weight": model.header.bits_per_weight,
    }
