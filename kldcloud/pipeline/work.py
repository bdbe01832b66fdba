"""The tasks that a plan comes to: shards of the base to stage, shards of candidates to measure."""

from __future__ import annotations

from collections.abc import Sequence

from kldcloud.corpus.chunks import Shard
from kldcloud.pipeline.corpora import ChunkedCorpus
from kldcloud.pipeline.model_files import FolderModel, Model
from kldcloud.pipeline.plan import SweepPlan
from kldcloud.pipeline.tasks import EngineRef, MeasureTask, ModelRef, StageTask
from kldcloud.staging.stage import StageIdentity, tokens_bytes


def group_name(candidate: str, corpus: str) -> str:
    """What a candidate's work on one corpus is called."""
    return f"{candidate} on {corpus}"


def stage_tasks(
    plan: SweepPlan,
    base: Model,
    corpus: ChunkedCorpus,
    identity: StageIdentity,
    shards: Sequence[Shard],
) -> list[StageTask]:
    """The base's shards of one corpus."""
    engine = EngineRef(reference(base), identity.context, plan.engines.of(base))
    return [
        StageTask(
            group=f"base {base.name} on {corpus.name}",
            key=identity.shard_key(shard),
            shard=shard,
            engine=engine,
            identity=identity,
            tokens=tokens_bytes(corpus.chunks[shard.first : shard.first + shard.count]),
        )
        for shard in shards
    ]


def measure_tasks(
    plan: SweepPlan,
    candidate: Model,
    at: int,
    shards: Sequence[Shard],
    upto: int | None = None,
) -> list[MeasureTask]:
    """One candidate's shards of one corpus.

    Args:
        plan: the run's.
        candidate: what is measured.
        at: which corpus.
        shards: of that corpus.
        upto: how many chunks of the base stage are there; None for all.
    """
    corpus, identity = plan.prepared.corpora[at], plan.stages[at]
    engine = EngineRef(reference(candidate), identity.context, plan.engines.of(candidate))
    return [
        MeasureTask(
            group=group_name(candidate.name, corpus.name),
            key=plan.partial_key(candidate.name, corpus.name, shard),
            worst_key=plan.worst_key(candidate.name, corpus.name, shard),
            shard=shard,
            engine=engine,
            stage=identity.key,
            run=plan.run,
            candidate=candidate.name,
            corpus=corpus.name,
            llama_compat=plan.llama_compat,
            upto=upto,
        )
        for shard in shards
    ]


def reference(model: Model) -> ModelRef:
    """A model as tasks name it."""
    if isinstance(model, FolderModel):
        size = model.folder.tensor_bytes
        return ModelRef(model.path, model.files_sha256, size, model.origin, folder=True)
    return ModelRef(model.path, model.sha256, model.bytes, model.origin)
