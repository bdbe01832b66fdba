"""The order of work: every chunk of every corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kldcloud.corpus.chunks import Shard
from kldcloud.pipeline.dispatch import Failure
from kldcloud.pipeline.facts import Stopped
from kldcloud.pipeline.model_files import KldBase
from kldcloud.pipeline.plan import SweepPlan
from kldcloud.pipeline.pulse import DriverPulse
from kldcloud.pipeline.session import Session
from kldcloud.pipeline.work import measure_tasks


@dataclass(frozen=True, slots=True)
class Measured:
    """What there is to reduce.

    Attributes:
        plan: the run's, its corpora cut to the chunks that were measured.
        shards: of each corpus by name.
        failures: groups that were given up, by name.
        stopped: how each corpus's measuring ended, by name, where it may end early.
    """

    plan: SweepPlan
    shards: Mapping[str, Sequence[Shard]]
    failures: Mapping[str, Failure]
    stopped: Mapping[str, Stopped] = field(default_factory=dict)


def measure_all(session: Session, plan: SweepPlan, pulse: DriverPulse) -> Measured:
    """Stage the base on every chunk, then measure every candidate on every chunk."""
    prepared = plan.prepared
    if isinstance(prepared.base, KldBase):
        session.import_base(plan, pulse)
    else:
        for at in range(len(prepared.corpora)):
            session.stage(plan, at, pulse)
    shards = {corpus.name: session.shards(plan, corpus) for corpus in prepared.corpora}
    tasks = [
        task
        for candidate in prepared.measured
        for at, corpus in enumerate(prepared.corpora)
        for task in measure_tasks(plan, candidate, at, shards[corpus.name])
    ]
    return Measured(plan, shards, session.measure(plan, tasks, pulse))
