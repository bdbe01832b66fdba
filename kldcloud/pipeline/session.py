"""Workers for one launch: the base staged, then every candidate measured against it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Self

from kldcloud.corpus.chunks import Shard, shard_size
from kldcloud.errors import EngineError, KldcloudError, StoreError
from kldcloud.models.folder_copy import upload_folder_once
from kldcloud.models.store_copy import upload_once
from kldcloud.pipeline.corpora import ChunkedCorpus
from kldcloud.pipeline.deadlines import ShardDeadlines
from kldcloud.pipeline.dispatch import REVIVAL_SECONDS, Dispatch, Failure
from kldcloud.pipeline.machines import Actors, Machines, Seat, WorkerSettings
from kldcloud.pipeline.model_files import FolderModel, KldBase, Model
from kldcloud.pipeline.plan import SweepPlan, make_plan, run_shards
from kldcloud.pipeline.progress import MEASURING, Progress
from kldcloud.pipeline.pulse import DriverPulse
from kldcloud.pipeline.stage_base import import_kld
from kldcloud.pipeline.tasks import EngineRef, MeasureTask, Reply, Task
from kldcloud.pipeline.work import reference, stage_tasks
from kldcloud.staging.folder_head import read_base_head
from kldcloud.staging.stage import (
    StageIdentity,
    canonical_json,
    finish_stage,
    is_complete,
    stage_shards,
    tokens_bytes,
)
from kldcloud.store.base import Store

HIDDEN_LIMIT = 1e-6
"""Nats: a base whose rebuilt logits are further than this from the engine's is staged as codes."""
REMOTE_REVIVAL_SECONDS = 300.0
"""How long a worker on another machine may be away: its machine may have to join again."""


class Session:
    """Workers that start when they are first needed and end with the block.

    Args:
        store: where everything is committed.
        progress: for the person at the terminal.
        machines: where workers run.
        seats: one a worker.
        attempt: the driver's, for heartbeats.
        deadline: seconds that a worker may hold a shard without a step forward.
    """

    def __init__(
        self,
        store: Store,
        progress: Progress,
        machines: Machines,
        seats: Sequence[Seat],
        attempt: str,
        deadline: float,
    ) -> None:
        self._store = store
        self._progress = progress
        self._machines = machines
        self._seats = seats
        self._attempt = attempt
        self._deadline = deadline
        self._actors: tuple[str, Actors] | None = None
        self.usage: list[dict[str, float]] = []
        """Of each worker that lived to the end; empty if none was needed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._actors = None
        self._machines.end()

    def rest(self) -> None:
        """End the workers, for nothing is left for them; what they used is known from here on."""
        if self._actors is not None:
            self.usage = self._actors[1].usage()
        self._actors = None
        self._machines.end()

    def settle(self, plan: SweepPlan) -> SweepPlan:
        """Put models where workers find them; the plan, changed if hidden states do not hold."""
        base = plan.prepared.base
        if isinstance(base, KldBase):
            self._ship(plan.prepared.candidates)
            return plan
        self._ship([base, *plan.prepared.candidates])
        return self._try_hidden(plan, base)

    def import_base(self, plan: SweepPlan, pulse: DriverPulse) -> None:
        """Make the base stage of a llama.cpp base file."""
        base = plan.prepared.base
        assert isinstance(base, KldBase)  # noqa: S101 - the caller has asked
        pulse.change(label=f"importing {base.file}")
        import_kld(self._store, base, plan.prepared.corpora[0], plan.stages[0], self._progress)

    def stage(
        self, plan: SweepPlan, at: int, pulse: DriverPulse, upto: int | None = None
    ) -> int | None:
        """Make the base stage of one corpus whole, or its first chunks.

        Args:
            plan: the run's.
            at: which corpus.
            pulse: for the run's signs of life.
            upto: so many chunks; None for all.

        Returns:
            Of how many chunks the manifest is that readers should ask for; None for the whole
            stage's, which may be there already when less was asked for.
        """
        base, corpus, identity = plan.prepared.base, plan.prepared.corpora[at], plan.stages[at]
        assert not isinstance(base, KldBase)  # noqa: S101 - the caller has asked
        if is_complete(self._store, identity):
            if upto is None or (upto,) == corpus.checkpoints[:1]:
                self._progress.note(f"base stage for {corpus.name} is there already")
            return None
        if upto == corpus.count:
            upto = None
        if upto is not None and is_complete(self._store, identity, upto):
            return upto
        proposed = plan.prepared.job.shard_chunks or shard_size(corpus.count, len(self._seats))
        shards = stage_shards(self._store, identity, proposed, corpus.checkpoints)
        shards = [shard for shard in shards if upto is None or shard.first < upto]
        tasks = stage_tasks(plan, base, corpus, identity, shards)
        failures = self._run(plan, f"staging {base.name}", "staging", tasks, identity.prefix, pulse)
        for failure in failures.values():
            raise failure.kind(f"{failure.group}: {failure.key}: {failure.cause}")
        head = None
        if identity.encoding == "hidden":
            head = read_base_head(base.path, plan.engines.of(base))
        finish_stage(self._store, identity, shards, corpus.chunks, head, upto)
        return upto

    def measure(
        self, plan: SweepPlan, tasks: Sequence[MeasureTask], pulse: DriverPulse
    ) -> Mapping[str, Failure]:
        """Measure candidates on shards; a candidate's failure comes back, no raise."""
        failures = self._run(plan, MEASURING, MEASURING, tasks, f"{plan.prefix}/partials", pulse)
        for failure in failures.values():
            if issubclass(failure.kind, StoreError):
                # A store that fails says nothing about the candidate: the run stops, to go on.
                raise failure.kind(f"{failure.group}: {failure.cause}")
        return failures

    def shards(self, plan: SweepPlan, corpus: ChunkedCorpus) -> Sequence[Shard]:
        """How the run cuts a corpus."""
        return run_shards(self._store, plan, corpus, len(self._seats))

    def _ship(self, models: Sequence[Model]) -> None:
        """Put into the store what other machines cannot fetch: files that were made here."""
        if not self._machines.remote:
            return
        for model in models:
            # A recipe's files are the base's.
            if model.origin or (isinstance(model, FolderModel) and model.recipe):
                continue
            with self._progress.bar(f"uploading {model.file}", model.bytes) as bar:
                if isinstance(model, FolderModel):
                    upload_folder_once(self._store, model.path, model.files_sha256, bar.reach)
                else:
                    upload_once(self._store, model.path, model.sha256, bar.reach)

    def _run(
        self,
        plan: SweepPlan,
        label: str,
        state: str,
        tasks: Sequence[Task],
        prefix: str,
        pulse: DriverPulse,
    ) -> Mapping[str, Failure]:
        """Run the tasks whose objects are not there yet."""
        there = {info.key for info in self._store.list(f"{prefix}/")}
        todo = [task for task in tasks if task.key not in there]
        chunks = sum(task.shard.count for task in tasks)
        done = chunks - sum(task.shard.count for task in todo)
        pulse.change(
            state=state,
            label=label,
            since=time.time(),
            done=done,
            done_at_start=done,
            total=chunks,
        )
        if done:
            self._progress.note(f"{label}: {done} of {chunks} chunks are done already")
        if not todo:
            return {}
        actors = self._workers(plan)
        deadlines = ShardDeadlines(self._store, plan.run, self._attempt, self._deadline)

        shown = (
            self._progress.measuring(self._store, plan.run, chunks, done)
            if state == MEASURING
            else self._progress.bar(label, chunks, done)
        )
        with shown as bar:

            def count(task: Task) -> None:
                bar.advance(task.shard.count)
                pulse.advance(task.shard.count)

            dispatch = Dispatch(
                actors,
                len(self._seats),
                lambda key: self._store.size(key) is not None,
                count,
                deadlines.is_stuck,
                REMOTE_REVIVAL_SECONDS if self._machines.remote else REVIVAL_SECONDS,
            )
            return dispatch.run(todo)

    def _workers(self, plan: SweepPlan) -> Actors:
        if self._actors is not None and self._actors[0] != plan.run:
            # The plan changed under way: heartbeats belong to another run now.
            self._actors = None
            self._machines.end()
        if self._actors is None:
            settings = WorkerSettings(
                self._store.uri, plan.run, self._attempt, self._machines.remote
            )
            with self._progress.bar("starting workers", 0):
                self._actors = (plan.run, self._machines.start(self._seats, settings))
        return self._actors[1]

    def _try_hidden(self, plan: SweepPlan, base: Model) -> SweepPlan:
        """Compare rebuilt logits with the engine's before anything is staged, or stage codes."""
        if plan.choice.encoding != "hidden" or all(
            is_complete(self._store, identity) for identity in plan.stages
        ):
            return plan
        reason = self._why_not_hidden(plan, base, plan.stages[0])
        if reason is None:
            return plan
        self._progress.warn(f"staging logits instead of hidden states: {reason}")
        self._store.write_new(
            f"{plan.stages[0].prefix}/refused.json", canonical_json({"reason": reason})
        )
        return make_plan(
            plan.prepared, plan.engines, remote=False, force_logits=reason, mixed=plan.mixed
        )

    def _why_not_hidden(self, plan: SweepPlan, base: Model, identity: StageIdentity) -> str | None:
        engine = EngineRef(reference(base), identity.context, plan.engines.of(base))
        chunk = tokens_bytes(plan.prepared.corpora[0].chunks[:1])
        workers = self._workers(plan)
        with self._progress.bar("trying hidden states on one chunk", 0):
            found = workers.call(0, "hidden_error", engine, identity, chunk)
        if isinstance(found, Reply):
            # Nothing about its states, which would be on record for good.
            raise _of_base(base.name, found.error)
        if isinstance(found, str):
            return found
        if found <= HIDDEN_LIMIT:
            return None
        return f"rebuilt logits are {found:.2g} nats from the engine's, over {HIDDEN_LIMIT:.0e}"


def _of_base(name: str, error: KldcloudError | None) -> KldcloudError:
    if error is None:
        return EngineError(f"base {name} failed, and nobody knows why")
    return type(error)(f"base {name}: {error.message}", hint=error.hint)
