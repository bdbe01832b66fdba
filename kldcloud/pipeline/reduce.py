"""Reduce: committed partials, in shard order, to the run's summary and token records."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kldcloud import __version__
from kldcloud.corpus.chunks import Shard
from kldcloud.corpus.token_texts import TOKEN_CLASSES, TokenTexts
from kldcloud.divergence.partial import Partial, PartialIdentity
from kldcloud.divergence.profile import Profile
from kldcloud.divergence.records import TokenWriter
from kldcloud.divergence.summary import ChunkMeans, Reduction
from kldcloud.pipeline.corpora import ChunkedCorpus
from kldcloud.pipeline.dispatch import Failure
from kldcloud.pipeline.facts import (
    NOT_STOPPED,
    Stopped,
    comparison_facts,
    floor_facts,
    profile_facts,
    stop_facts,
)
from kldcloud.pipeline.model_files import KldBase, Model
from kldcloud.pipeline.plan import SweepPlan, other_engines
from kldcloud.pipeline.work import group_name
from kldcloud.pipeline.worst import WorstFound, read_tops, worst_facts
from kldcloud.report.profile_file import dump_profiles
from kldcloud.report.summary_file import SCHEMA, dump_summary
from kldcloud.report.worst_file import dump_worst
from kldcloud.spec.job import NOISE_FLOOR
from kldcloud.store.base import Store

MAX_PARTIAL_BYTES = 1 << 32


@dataclass(frozen=True, slots=True)
class Reduced:
    """What a run comes to, as the bytes of its files.

    Attributes:
        summary: of summary.json.
        profile: of profile.json.
        worst: of worst.json.
    """

    summary: bytes
    profile: bytes
    worst: bytes


def reduce_run(
    store: Store,
    plan: SweepPlan,
    texts: TokenTexts,
    shards: Mapping[str, Sequence[Shard]],
    failures: Mapping[str, Failure],
    stopped: Mapping[str, Stopped] = NOT_STOPPED,
) -> Reduced:
    """Merge what is committed, and write tokens.parquet.

    Args:
        store: where the partials are.
        plan: the run's.
        texts: of the base's vocabulary.
        shards: of each corpus by name.
        failures: groups that were given up; they appear as failed.
        stopped: how measuring ended on corpora where it may end early.

    Raises:
        FormatError: if a partial is not what its key says.
    """
    parts = _Parts()
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.parquet"
        with TokenWriter(tokens) as writer:
            for corpus in plan.prepared.corpora:
                measured: dict[str, ChunkMeans] = {}
                stop = stopped.get(corpus.name)
                level = stop.decision.level if stop else None
                for candidate in plan.prepared.measured:
                    failure = failures.get(group_name(candidate.name, corpus.name))
                    error = f"{failure.key}: {failure.cause}" if failure else None
                    pieces = read_partials(store, plan, candidate.name, corpus, shards[corpus.name])
                    if candidate.name == NOISE_FLOOR:
                        found = None if failure else _reduce_one(pieces, corpus, texts, None)
                        floor = found.reduction if found else None
                        parts.floors.append(floor_facts(corpus.name, floor, error, level))
                        continue
                    result = None
                    if failure is None:
                        one = _reduce_one(pieces, corpus, texts, writer)
                        measured[candidate.name] = one.reduction.chunk_means("kld")
                        parts.profiles.append(
                            profile_facts(candidate.name, corpus, one.reduction, one.profile)
                        )
                        parts.worst.append(
                            _worst(store, plan, candidate.name, corpus, one.worst, texts)
                        )
                        result = one.reduction.result(level=level).to_json_dict()
                    parts.results.append(
                        {
                            "candidate": candidate.name,
                            "corpus": corpus.name,
                            "status": "failed" if failure else "complete",
                            "error": error,
                            "result": result,
                        }
                    )
                if stop is not None:
                    parts.stops.append(stop_facts(corpus.name, stop))
                if measured:
                    parts.comparisons.append(comparison_facts(corpus.name, measured, stop))
        if not failures:
            store.write_new_file(f"{plan.prefix}/tokens.parquet", tokens)
    summary = _summary(plan, parts, partial=bool(failures))
    return Reduced(
        dump_summary(summary),
        dump_profiles(plan.run, parts.profiles),
        dump_worst(plan.run, parts.worst),
    )


@dataclass(frozen=True, slots=True)
class _Parts:
    """What is gathered corpus by corpus, as JSON has it."""

    results: list[dict[str, Any]] = field(default_factory=list)
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    floors: list[dict[str, Any]] = field(default_factory=list)
    stops: list[dict[str, Any]] = field(default_factory=list)
    profiles: list[dict[str, Any]] = field(default_factory=list)
    worst: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Measured:
    """One candidate on one corpus, all of its partials added."""

    reduction: Reduction
    profile: Profile
    worst: WorstFound


def read_partials(
    store: Store, plan: SweepPlan, candidate: str, corpus: ChunkedCorpus, shards: Sequence[Shard]
) -> Iterator[Partial]:
    """What a candidate came to on these shards, each checked down to its records.

    Raises:
        FormatError: if one is not what its key says.
    """
    for shard in shards:
        key = plan.partial_key(candidate, corpus.name, shard)
        yield Partial.from_bytes(
            store.read(key, limit=MAX_PARTIAL_BYTES),
            expected=PartialIdentity(plan.run, candidate, corpus.name, shard.first, shard.count),
            max_rows=shard.count * corpus.shape.rows,
            name=key,
        )


def _reduce_one(
    partials: Iterator[Partial],
    corpus: ChunkedCorpus,
    texts: TokenTexts,
    writer: TokenWriter | None,
) -> _Measured:
    one = _Measured(
        Reduction(corpus.count),
        Profile(corpus.context, texts.classes, len(TOKEN_CLASSES)),
        WorstFound(corpus.shape),
    )
    for partial in partials:
        one.reduction.add(partial)
        one.profile.add(partial.records)
        one.worst.add(partial)
        if writer is not None:
            whose = partial.identity
            writer.append(partial.records, candidate=whose.candidate, corpus=whose.corpus)
    return one


def _worst(
    store: Store,
    plan: SweepPlan,
    candidate: str,
    corpus: ChunkedCorpus,
    found: WorstFound,
    texts: TokenTexts,
) -> dict[str, Any]:
    tops = read_tops(
        store,
        found,
        lambda shard: PartialIdentity(plan.run, candidate, corpus.name, shard.first, shard.count),
        lambda shard: plan.worst_key(candidate, corpus.name, shard),
    )
    positions = worst_facts(found, tops, corpus.chunks, texts)
    return {"candidate": candidate, "corpus": corpus.name, "positions": positions}


def _summary(plan: SweepPlan, parts: _Parts, *, partial: bool) -> dict[str, Any]:
    prepared = plan.prepared
    others = other_engines(prepared, plan.engines, plan.engine)
    return {
        "schema": SCHEMA,
        "run": plan.run,
        "name": prepared.job.name,
        "status": "partial" if partial else "complete",
        "kldcloud": __version__,
        "engine": dict(plan.engine),
        **({"engines": others} if others else {}),
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
                "format": corpus.format,
            }
            for corpus in prepared.corpora
        ],
        "candidates": [
            {"file": candidate.file, **_model(candidate)} for candidate in prepared.candidates
        ],
        "results": parts.results,
        "comparisons": parts.comparisons,
        "noise_floor": parts.floors,
        "stops": parts.stops,
    }


def _base(base: Model | KldBase) -> dict[str, Any]:
    if not isinstance(base, KldBase):
        return _model(base)
    return {
        "name": base.name,
        "sha256": base.sha256,
        "bytes": base.header.expected_bytes,
        "parameters": None,
        "bits_per_weight": None,
    }


def _model(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "sha256": model.sha256,
        "bytes": model.bytes,
        "parameters": model.parameters,
        "bits_per_weight": model.bits_per_weight,
    }
