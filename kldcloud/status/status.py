"""What a status says about a run or a launch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kldcloud.status.launch import LaunchStatus, recovers
from kldcloud.status.progress import ResultStatus, StageStatus
from kldcloud.status.vitals import WorkersStatus


@dataclass(frozen=True, slots=True)
class Status:
    """All that a store knows, at one moment.

    Attributes:
        store: its URI.
        run: the run's id; empty for a launch that has none yet.
        state: see `vitals.judge`; or starting, for machines that have not said a word yet.
        stage: staging, measuring, reducing or finished; empty before there is a run.
        label: the work under way, for a person.
        encoding: of the base stages.
        started: Unix time in seconds of the first attempt; None if there was none.
        updated: Unix time in seconds of the last sign of life; None if there was none.
        attempts: driver processes so far.
        done: chunk evaluations that are committed, of the base's and of candidates.
        total: chunk evaluations in all; 0 if unknown.
        tokens_a_second: of the driver at work.
        eta: Unix time in seconds when it will have done the last chunk.
        stages: base stages.
        results: candidates on corpora.
        workers: of the driver at work.
        failures: what was given up, a line each.
        error: why it ended, in one line.
        launches: on other machines, that belong to it.
        odd: objects that are not what their keys promise, and why.
    """

    store: str
    run: str
    state: str
    stage: str = ""
    label: str = ""
    encoding: str = ""
    started: float | None = None
    updated: float | None = None
    attempts: int = 0
    done: int = 0
    total: int = 0
    tokens_a_second: float | None = None
    eta: float | None = None
    stages: tuple[StageStatus, ...] = ()
    results: tuple[ResultStatus, ...] = ()
    workers: WorkersStatus | None = None
    failures: tuple[str, ...] = ()
    error: str = ""
    launches: tuple[LaunchStatus, ...] = ()
    odd: Mapping[str, str] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        """Whether nothing more will happen by itself."""
        if self.state in {"finished", "failed", "out-of-time"}:
            return True
        return self.state in {"stopped", "gone"} and not recovers(self.launches)
