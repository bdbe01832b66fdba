"""The order of work where a run may stop: checkpoint by checkpoint, until the data decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kldcloud.corpus.chunks import Shard
from kldcloud.divergence.moments import INDEX
from kldcloud.divergence.records import Floats
from kldcloud.divergence.sequential import Decision, Rule, decide
from kldcloud.pipeline.corpora import ChunkedCorpus
from kldcloud.pipeline.dispatch import Failure
from kldcloud.pipeline.facts import Stopped
from kldcloud.pipeline.measuring import Measured
from kldcloud.pipeline.model_files import Model
from kldcloud.pipeline.plan import SweepPlan
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.pulse import DriverPulse
from kldcloud.pipeline.reduce import read_partials
from kldcloud.pipeline.session import Session
from kldcloud.pipeline.work import group_name, measure_tasks
from kldcloud.store.base import Store


def measure_until_settled(
    session: Session,
    store: Store,
    plan: SweepPlan,
    rule: Rule,
    pulse: DriverPulse,
    progress: Progress,
) -> Measured:
    """Measure one corpus after the other, each as far as its own checkpoints ask for.

    Nothing is staged beyond them either. Decisions are read from what is committed and depend on
    nothing else, so a launch that goes on comes to the same ones.
    """
    corpora: list[ChunkedCorpus] = []
    shards: dict[str, Sequence[Shard]] = {}
    failures: dict[str, Failure] = {}
    stopped: dict[str, Stopped] = {}
    for at, corpus in enumerate(plan.prepared.corpora):
        cut = session.shards(plan, corpus)
        read = _ChunkMeans(store, plan, corpus)
        for count in corpus.checkpoints:
            there = [shard for shard in cut if shard.first < count]
            upto = session.stage(plan, at, pulse, upto=count)
            tasks = [
                task
                for candidate in plan.prepared.measured
                if group_name(candidate.name, corpus.name) not in failures
                for task in measure_tasks(plan, candidate, at, there, upto)
            ]
            failures |= session.measure(plan, tasks, pulse)
            sound = [
                each
                for each in plan.prepared.candidates
                if group_name(each.name, corpus.name) not in failures
            ]
            decision = _decision(rule, read, sound, there, corpus) if sound else None
            if decision is None or decision.final:
                break
        if decision is not None:
            names = tuple(each.name for each in sound)
            stopped[corpus.name] = Stopped(decision, names)
            progress.note(_note(corpus.name, decision))
            # Without a candidate that failed only now, fewer may have been enough.
            count = decision.chunks
        corpora.append(replace(corpus, chunks=corpus.chunks[:count]))
        shards[corpus.name] = [shard for shard in cut if shard.first < count]
    prepared = replace(plan.prepared, corpora=tuple(corpora))
    return Measured(replace(plan, prepared=prepared), shards, failures, stopped)


def _decision(
    rule: Rule,
    read: _ChunkMeans,
    candidates: Sequence[Model],
    shards: Sequence[Shard],
    corpus: ChunkedCorpus,
) -> Decision | None:
    means = np.stack([read.means(each.name, shards) for each in candidates])
    return decide(rule, means, (corpus.shape.rows,) * means.shape[1], corpus.count)


class _ChunkMeans:
    """Mean KL divergences of chunks from committed partials, each of which is read once."""

    def __init__(self, store: Store, plan: SweepPlan, corpus: ChunkedCorpus) -> None:
        self._store = store
        self._plan = plan
        self._corpus = corpus
        self._means: dict[str, list[float]] = {}

    def means(self, candidate: str, shards: Sequence[Shard]) -> Floats:
        """float64 [chunks], of the first chunks that these shards hold, in order."""
        found = self._means.setdefault(candidate, [])
        new = [shard for shard in shards if shard.first >= len(found)]
        for partial in read_partials(self._store, self._plan, candidate, self._corpus, new):
            found.extend(float(each.mean[INDEX["kld"]]) for each in partial.moments)
        return np.array(found)


def _note(corpus: str, decision: Decision) -> str:
    what = {"ranked": "the ranking", "precise": "every mean"}[decision.rule.when]
    if decision.settled:
        return (
            f"{corpus}: {what} is settled after {decision.chunks:,} of {decision.of:,} chunks; "
            f"{decision.saved:.0%} saved"
        )
    return f"{corpus}: all {decision.of:,} chunks do not settle {what}"
