"""How a distillation is going, from its store alone: no torch, and nobody asked."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from kldcloud.pipeline.life import AttemptRecord, attempt_key, read_attempt
from kldcloud.pipeline.qad_runs import qad_prefix
from kldcloud.qad.looks import Look
from kldcloud.qad.process import Refusal, read_refusal
from kldcloud.qad.progress_file import WORKING, TrainingProgress, read_progress
from kldcloud.qad.result_file import QadResult, read_result
from kldcloud.status.committed import READS_IN_FLIGHT
from kldcloud.status.launch import LaunchStatus, launches_in, recovers
from kldcloud.status.vitals import (
    ENDED,
    SILENT_SECONDS,
    STUCK_SECONDS,
    STUCK_STEPS,
    UNKNOWN_PACE_SECONDS,
    age,
    is_preparing,
    plausible,
)
from kldcloud.store.base import Store
from kldcloud.store.s3_parallel import run_in_flight


@dataclass(frozen=True, slots=True)
class QadStatus:
    """All that a store knows of a distillation, at one moment.

    Attributes:
        store: its URI.
        run: the run's id.
        state: running, preparing, finished, failed (also where the student is no better than its
            init), stopped, out-of-time, or gone: nobody said that it ended, and nobody works on it.
        stage: loading, training or measuring; empty where nobody works.
        label: what machines prepare, for a person.
        started: Unix time in seconds of the first launch; None if nobody has said.
        updated: Unix time in seconds of the last sign of life; None if there was none.
        step: steps done.
        steps: in all, unless patience ends before; None if nobody has said.
        kld: of the last step's tokens, nats; None before one.
        start: the look at held-out text before the first step; None before it.
        latest: the latest look; None before the first.
        best: the look that lost least; None before the first.
        tokens_a_second: of this launch; None where nobody trains.
        eta: Unix time in seconds when the last step will be done.
        still: seconds without a step, where that is too long.
        result: what came of it; None before the end.
        error: why it ended, in one line.
        warning: what did not work out, and ended nothing.
        launches: on other machines, that belong to it.
    """

    store: str
    run: str
    state: str
    stage: str = ""
    label: str = ""
    started: float | None = None
    updated: float | None = None
    step: int = 0
    steps: int | None = None
    kld: float | None = None
    start: Look | None = None
    latest: Look | None = None
    best: Look | None = None
    tokens_a_second: float | None = None
    eta: float | None = None
    still: float | None = None
    result: QadResult | None = None
    error: str = ""
    warning: str = ""
    launches: tuple[LaunchStatus, ...] = ()

    @property
    def settled(self) -> bool:
        """Whether nothing more will happen by itself."""
        if self.state in {"finished", "failed", "out-of-time"}:
            return True
        return self.state in {"stopped", "gone"} and not recovers(self.launches)


def qad_status(
    store: Store, run: str, now: float, launches: tuple[LaunchStatus, ...] = ()
) -> QadStatus:
    """Look at a run once.

    Args:
        store: where it is.
        run: its id.
        now: Unix time in seconds.
        launches: on other machines, that belong to it.

    Raises:
        StoreError: the store could not be read.
    """
    prefix = qad_prefix(run)
    progress = read_progress(store, prefix)
    result, refusal = read_result(store, prefix), read_refusal(store, prefix)
    attempts = (each for launch in launches for each in launch.attempts)
    last = max(attempts, key=lambda each: each.attempt, default=None)
    if progress is not None and _given_back(launches, progress):
        progress = replace(progress, stage="stopped")
    state = qad_state(progress, result, refusal, last, now)
    status = QadStatus(store.uri, run, state, launches=launches)
    if progress is not None:
        status = _with_progress(status, progress, now)
    if last is not None:
        label = last.label if state == "preparing" else ""
        status = replace(status, label=label, updated=max(status.updated or 0.0, last.updated))
    if state in {"finished", "failed"} and result is not None:
        return replace(status, result=result, error=result.failed or "")
    if state in {"failed", "stopped", "out-of-time"}:
        told = [refusal.message] if refusal else []
        told += [each.error for each in (progress, last) if each is not None]
        return replace(status, error=next(filter(None, told), ""))
    return status


def _given_back(launches: tuple[LaunchStatus, ...], progress: TrainingProgress) -> bool:
    """Whether those who wrote this have no machines any more, whatever it says."""
    down = [each.record.down for each in launches if each.record is not None]
    at_work = progress.stage not in ENDED and bool(down) and all(down)
    # A machine that no launch rented may have gone on since.
    return at_work and progress.seen <= max(down)


def qad_state(
    progress: TrainingProgress | None,
    result: QadResult | None,
    refusal: Refusal | None,
    last: AttemptRecord | None,
    now: float,
) -> str:
    """The state of a distillation, as `QadStatus` names it; `last` is the machines' newest word."""
    if is_at_work(progress, now):
        return "running"
    if result is not None:
        return "finished" if result.failed is None else "failed"
    if last is not None and (is_preparing(last, now) or last.state == "out-of-time"):
        return last.state
    if refusal is not None:
        return "failed"
    said = [progress.stage if progress else "", last.state if last else ""]
    ended = next((each for each in said if each in ENDED), "gone")
    # What came to its end has a result: that of this one cannot be read.
    return "stopped" if ended == "finished" else ended


def is_at_work(progress: TrainingProgress | None, now: float) -> bool:
    """Whether somebody works on it: its file was written lately, by one who had not ended."""
    return (
        progress is not None
        and progress.stage in WORKING
        and age(progress.seen, now) < SILENT_SECONDS
    )


def launches_of(store: Store, run: str) -> list[str]:
    """The launches on other machines whose newest attempt is of a run."""
    newest = {
        launch: attempts[-1]
        for launch, attempts in launches_in(store.list("launches/")).items()
        if attempts
    }

    def is_of_run(launch: str, _: threading.Event) -> bool:
        found = plausible(read_attempt(store, attempt_key(launch, newest[launch])))
        return found is not None and found.run == run

    of_run = run_in_flight(is_of_run, newest, width=READS_IN_FLIGHT)
    return [launch for launch, mine in zip(newest, of_run, strict=True) if mine]


def _with_progress(status: QadStatus, progress: TrainingProgress, now: float) -> QadStatus:
    status = replace(
        status,
        started=progress.started,
        updated=progress.seen,
        step=progress.step,
        steps=progress.steps,
        kld=progress.kld,
        start=progress.start,
        latest=progress.latest,
        best=progress.best,
        warning=progress.warning,
    )
    if status.state != "running" or not is_at_work(progress, now):
        return status
    status = replace(status, stage=progress.stage)
    if progress.stage == "measuring":
        return status  # the sweep has heartbeats of its own
    rate = progress.tokens_per_second
    a_step = progress.tokens_a_step / rate if rate else None
    if a_step is not None:
        left = max(0, progress.steps - progress.step) * a_step
        status = replace(status, tokens_a_second=rate, eta=progress.moved + left)
    # Both times are of the same clock, so no other clock can make it look stuck.
    still = progress.seen - progress.moved
    patience = UNKNOWN_PACE_SECONDS if a_step is None else STUCK_STEPS * a_step
    return replace(status, still=still if still > max(STUCK_SECONDS, patience) else None)
