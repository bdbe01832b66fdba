"""All runs and launches of a store: one listing, and two small objects each."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kldcloud.pipeline.life import (
    AttemptRecord,
    DriverLife,
    LaunchRecord,
    attempt_key,
    driver_key,
    launch_key,
    read_attempt,
    read_driver,
    read_launch,
)
from kldcloud.pipeline.qad_runs import qad_ids
from kldcloud.status.committed import READS_IN_FLIGHT
from kldcloud.status.launch import launch_state, launches_in, stopped_with
from kldcloud.status.qad import qad_status
from kldcloud.status.run_files import RunFiles, attempt_started, read_plan_note, runs_in
from kldcloud.status.vitals import ENDED, judge, plausible
from kldcloud.store.base import Store
from kldcloud.store.keys import is_part
from kldcloud.store.s3_parallel import run_in_flight


@dataclass(frozen=True, slots=True)
class RunLine:
    """One run, or a launch that has none.

    Attributes:
        id: the run's, or the launch's.
        kind: run (a sweep's), qad or launch.
        name: the job's, as the run's id has it; empty for a launch.
        state: see `vitals.judge`, of a distillation `qad.qad_state`.
        done: candidates' chunks that are committed, or steps that are trained.
        total: of these, in all; None if nobody has said.
        started: Unix time in seconds of the first attempt; None if there was none.
        updated: Unix time in seconds of the last sign of life; None if there was none.
    """

    id: str
    kind: str
    name: str
    state: str
    done: int
    total: int | None
    started: float | None
    updated: float | None


def list_runs(store: Store, now: float) -> list[RunLine]:
    """Every run and every launch without one, the newest sign of life last.

    Args:
        store: where they are.
        now: Unix time in seconds.

    Raises:
        StoreError: the store could not be read.
    """
    runs = runs_in(store.list("runs/"))
    qads = qad_ids(store)
    known = {*qads, *(run.run for run in runs)}
    launches = launches_in(store.list("launches/"))

    def run_line(run: RunFiles, _: threading.Event) -> RunLine:
        return _run_line(store, run, now)

    def launch_line(launch: str, _: threading.Event) -> RunLine | None:
        return _launch_line(store, launch, launches, known, now)

    def qad_line(run: str, _: threading.Event) -> RunLine:
        return _qad_line(store, run, now)

    lines = run_in_flight(run_line, runs, width=READS_IN_FLIGHT)
    lines += run_in_flight(qad_line, qads, width=READS_IN_FLIGHT)
    others = run_in_flight(launch_line, launches, width=READS_IN_FLIGHT)
    lines += [each for each in others if each is not None]
    return sorted(lines, key=lambda each: (each.updated or each.started or 0.0, each.id))


def _run_line(store: Store, run: RunFiles, now: float) -> RunLine:
    finished = "summary.json" in run.names
    attempt = max(run.attempts, default=None)
    driver: DriverLife | None = None
    if attempt is not None:
        driver = plausible(read_driver(store, driver_key(run.run, attempt)))
        driver = driver and replace(driver, attempt=attempt)
    if driver is not None and is_part(driver.launch) and driver.state not in ENDED:
        driver = stopped_with(plausible(read_launch(store, launch_key(driver.launch))), driver)
    plan = read_plan_note(store, run.run) if "plan.json" in run.names else None
    return RunLine(
        id=run.run,
        kind="run",
        name=run.run.rpartition("-")[0],
        state=judge(driver, None, finished=finished, now=now),
        done=sum(part.shard.count for part in run.partials),
        total=plan.measured if plan else None,
        started=attempt_started(min(run.attempts, default="")),
        updated=driver.updated if driver else None,
    )


def _qad_line(store: Store, run: str, now: float) -> RunLine:
    status = qad_status(store, run, now)
    return RunLine(
        id=run,
        kind="qad",
        name=run.rpartition("-")[0],
        state=status.state,
        done=status.step,
        total=status.steps,
        started=status.started,
        updated=status.updated,
    )


def _launch_line(
    store: Store, launch: str, launches: Mapping[str, list[str]], runs: set[str], now: float
) -> RunLine | None:
    """A launch's line; None if it has a run, which has its own line."""
    attempts = launches[launch]
    last: AttemptRecord | None = None
    if attempts:
        last = plausible(read_attempt(store, attempt_key(launch, attempts[-1])))
    if last is not None and last.run in runs:
        return None
    record = plausible(read_launch(store, launch_key(launch)))
    last = last and stopped_with(record, last)
    return RunLine(
        id=launch,
        kind="launch",
        name="",
        state=launch_state(record, last, now),
        done=0,
        total=None,
        started=_began(attempts, record),
        updated=last.updated if last else None,
    )


def _began(attempts: Sequence[str], record: LaunchRecord | None) -> float | None:
    if attempts:
        return attempt_started(attempts[0])
    return record.launched if record else None
