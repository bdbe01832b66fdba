"""Reduce: committed partials, in shard order, to the run's summary and token records."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kldcloud import __version__
from kldcloud.corpus.chunks import Shard
from kldcloud.divergence.partial import Partial, PartialIdentity
from kldcloud.divergence.records import TokenWriter
from kldcloud.divergence.summary import Reduction
from kldcloud.pipeline.dispatch import Failure
from kldcloud.pipeline.plan import SweepPlan
from kldcloud.pipeline.prepare import ChunkedCorpus, KldBase, ModelFile
from kldcloud.report.summary_file import dump_summary
from kldcloud.store.base import Store

MAX_PARTIAL_BYTES = 1 << 32


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
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.parquet"
        with TokenWriter(tokens) as writer:
            for corpus in plan.prepared.corpora:
                for candidate in plan.prepared.candidates:
                    failure = failures.get(group_name(candidate.name, corpus.name))
                    result = None
                    if failure is None:
                        result = _reduce_one(
                            store, plan, candidate.name, corpus, shards[corpus.name], writer
                        )
                    results.append(
                        {
                            "candidate": candidate.name,
                            "corpus": corpus.name,
                            "status": "failed" if failure else "complete",
                            "error": f"{failure.key}: {failure.cause}" if failure else None,
                            "result": result,
                        }
                    )
        if not failures:
            store.write_new_file(f"{plan.prefix}/tokens.parquet", tokens)
    return dump_summary(_summary(plan, results, partial=bool(failures)))


def _reduce_one(
    store: Store,
    plan: SweepPlan,
    candidate: str,
    corpus: ChunkedCorpus,
    shards: Sequence[Shard],
    writer: TokenWriter,
) -> dict[str, object]:
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
    return reduction.result().to_json_dict()


def _summary(
    plan: SweepPlan, results: Sequence[Mapping[str, Any]], *, partial: bool
) -> dict[str, Any]:
    prepared = plan.prepared
    return {
        "schema": "kldcloud.summary/1",
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
