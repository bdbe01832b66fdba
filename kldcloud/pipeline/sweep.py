"""A sweep from a validated job to a reported run: the order of things, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from kldcloud.clusters.local_ray import RayActors, local_ray
from kldcloud.corpus.chunks import Shard, shard_size
from kldcloud.errors import StoreError
from kldcloud.models.llama_library import llama
from kldcloud.pipeline.dispatch import Dispatch, Failure
from kldcloud.pipeline.plan import SweepPlan, llama_options, make_plan, run_shards
from kldcloud.pipeline.prepare import KldBase, ModelFile, PreparedSweep, prepare
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.publish import finished, note_life, note_plan, publish
from kldcloud.pipeline.reduce import group_name, reduce_run
from kldcloud.pipeline.stage_base import import_kld
from kldcloud.pipeline.tasks import EngineRef, MeasureTask, Reply, StageTask, Task
from kldcloud.pipeline.workers import WorkerLayout, worker_layout
from kldcloud.report.summary_file import Summary, parse_summary
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.job import SweepJob
from kldcloud.staging.head import read_head
from kldcloud.staging.stage import (
    canonical_json,
    finish_stage,
    is_complete,
    load_json,
    stage_shards,
    tokens_bytes,
)
from kldcloud.store import check_usable
from kldcloud.store.base import Store

HIDDEN_LIMIT = 1e-6
"""Nats: a base whose rebuilt logits are further than this from the engine's is staged as codes."""


@dataclass(frozen=True, slots=True)
class SweepOutcome:
    """A finished sweep.

    Attributes:
        run: its id.
        summary: checked content of summary.json.
        failures: groups that were given up, by name.
        seconds: wall-clock of this launch.
    """

    run: str
    summary: Summary
    failures: Mapping[str, Failure]
    seconds: float


def run_sweep(
    job: SweepJob, cluster: ClusterSpec, store: Store, progress: Progress
) -> SweepOutcome:
    """Run a sweep, or what is left of it; the same job and store always end in the same bytes.

    Raises:
        KldcloudError: one line that says what, where and the next step.
    """
    started = time.monotonic()
    # What would end the run after hours of downloads and quantising ends it now.
    check_usable(store)
    llama()
    prepared = prepare(job, progress)
    layout = worker_layout(
        cluster, job.engine, _largest_model(prepared), sum(c.count for c in prepared.corpora)
    )
    options = llama_options(cluster.engine_for(job.engine), layout.threads)
    session = _Session(store, progress, layout)
    plan = make_plan(prepared, options, remote=store.uri.startswith("s3:"))
    refused = _refusal_on_record(store, plan)
    if refused is not None:
        plan = make_plan(prepared, options, remote=False, force_logits=refused)
    if (found := finished(store, plan)) is not None:
        progress.note(f"run {plan.run} is complete already")
        return SweepOutcome(plan.run, found, {}, time.monotonic() - started)
    with session:
        plan = session.stage(plan)
        note_plan(store, plan)
        shards, failures = session.measure(plan)
    with_failures = {name: failures[name] for name in sorted(failures)}
    summary_bytes = reduce_run(store, plan, shards, with_failures)
    summary = parse_summary(summary_bytes)
    publish(store, plan, summary, summary_bytes, partial=bool(failures))
    seconds = time.monotonic() - started
    note_life(store, plan, layout, seconds, session.usage)
    return SweepOutcome(plan.run, summary, with_failures, seconds)


def _largest_model(prepared: PreparedSweep) -> int:
    models = [*prepared.candidates]
    if isinstance(prepared.base, ModelFile):
        models.append(prepared.base)
    return max(model.header.file_bytes for model in models)


class _Session:
    """Workers for one launch, started when first needed and ended with the block."""

    def __init__(self, store: Store, progress: Progress, layout: WorkerLayout) -> None:
        self._store = store
        self._progress = progress
        self._layout = layout
        self._actors: RayActors | None = None
        self._ray = local_ray(layout.workers)
        self.usage: list[dict[str, float]] = []
        """Of each worker that lived to the end; empty if none was needed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._actors is not None:
            if exception[0] is None:
                self.usage = self._actors.usage()
            self._actors = None
            self._ray.__exit__(None, None, None)

    def stage(self, plan: SweepPlan) -> SweepPlan:
        """Make every base stage whole; returns the plan, changed if hidden states were refused."""
        base = plan.prepared.base
        if isinstance(base, KldBase):
            corpus = plan.prepared.corpora[0]
            import_kld(self._store, base, corpus, plan.stages[0], self._progress)
            return plan
        if plan.choice.encoding == "hidden" and not all(
            is_complete(self._store, identity) for identity in plan.stages
        ):
            reason = self._why_not_hidden(plan, base)
            if reason is not None:
                self._progress.warn(f"staging logits instead of hidden states: {reason}")
                self._store.write_new(
                    f"{plan.stages[0].prefix}/refused.json", canonical_json({"reason": reason})
                )
                plan = make_plan(plan.prepared, plan.options, remote=False, force_logits=reason)
        for corpus, identity in zip(plan.prepared.corpora, plan.stages, strict=True):
            if is_complete(self._store, identity):
                self._progress.note(f"base stage for {corpus.name} is there already")
                continue
            engine = EngineRef(base.path, identity.context, plan.options)
            proposed = plan.prepared.job.shard_chunks or shard_size(
                corpus.count, self._layout.workers
            )
            shards = stage_shards(self._store, identity, proposed)
            tasks: list[Task] = [
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
            failures = self._run(f"staging {base.name}", tasks, identity.prefix)
            for failure in failures.values():
                raise failure.kind(f"{failure.group}: {failure.key}: {failure.cause}")
            head = None
            if identity.encoding == "hidden":
                head = read_head(base.path, base.header)
            finish_stage(self._store, identity, shards, corpus.chunks, head)
        return plan

    def measure(self, plan: SweepPlan) -> tuple[dict[str, Sequence[Shard]], Mapping[str, Failure]]:
        """Measure every candidate on every corpus; a candidate's failure comes back, no raise."""
        prepared = plan.prepared
        shards: dict[str, Sequence[Shard]] = {
            corpus.name: run_shards(self._store, plan, corpus, self._layout.workers)
            for corpus in prepared.corpora
        }
        tasks: list[Task] = [
            MeasureTask(
                group=group_name(candidate.name, corpus.name),
                key=plan.partial_key(candidate.name, corpus.name, shard),
                shard=shard,
                engine=EngineRef(candidate.path, identity.context, plan.options),
                stage=identity.key,
                run=plan.run,
                candidate=candidate.name,
                corpus=corpus.name,
                llama_compat=plan.llama_compat,
            )
            for candidate in prepared.candidates
            for corpus, identity in zip(prepared.corpora, plan.stages, strict=True)
            for shard in shards[corpus.name]
        ]
        failures = self._run("measuring", tasks, f"{plan.prefix}/partials")
        for failure in failures.values():
            if issubclass(failure.kind, StoreError):
                # A store that fails says nothing about the candidate: the run stops, to go on.
                raise failure.kind(f"{failure.group}: {failure.cause}")
        return shards, failures

    def _run(self, label: str, tasks: Sequence[Task], prefix: str) -> Mapping[str, Failure]:
        """Run the tasks whose objects are not there yet."""
        there = {info.key for info in self._store.list(f"{prefix}/")}
        todo = [task for task in tasks if task.key not in there]
        chunks = sum(task.shard.count for task in tasks)
        done = chunks - sum(task.shard.count for task in todo)
        if done:
            self._progress.note(f"{label}: {done} of {chunks} chunks are done already")
        if not todo:
            return {}
        actors = self._workers()
        with self._progress.bar(label, chunks, done) as bar:
            dispatch = Dispatch(
                actors,
                self._layout.workers,
                lambda key: self._store.size(key) is not None,
                lambda task: bar.advance(task.shard.count),
            )
            return dispatch.run(todo)

    def _workers(self) -> RayActors:
        if self._actors is None:
            layout = self._layout
            with self._progress.bar("starting workers", 0):
                self._ray.__enter__()
                self._actors = RayActors(
                    layout.workers, layout.threads, self._store.uri, layout.memory
                )
        return self._actors

    def _why_not_hidden(self, plan: SweepPlan, base: ModelFile) -> str | None:
        """Compare rebuilt logits with the engine's on one chunk, before anything is staged."""
        identity, corpus = plan.stages[0], plan.prepared.corpora[0]
        engine = EngineRef(base.path, identity.context, plan.options)
        workers, chunk = self._workers(), tokens_bytes(corpus.chunks[:1])
        with self._progress.bar("trying hidden states on one chunk", 0):
            found = workers.call(0, "hidden_error", engine, identity, chunk)
        if isinstance(found, Reply):
            return str(found.error)
        if found <= HIDDEN_LIMIT:
            return None
        return f"rebuilt logits are {found:.2g} nats from the engine's, over {HIDDEN_LIMIT:.0e}"


def _refusal_on_record(store: Store, plan: SweepPlan) -> str | None:
    """Why an earlier launch found hidden states unfit for this base, if one did."""
    if plan.choice.encoding != "hidden":
        return None
    key = f"{plan.stages[0].prefix}/refused.json"
    if store.size(key) is None:
        return None
    return str(load_json(store, key).get("reason"))
