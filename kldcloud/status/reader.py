"""Reading a run's state from its store alone: commits for what is done, heartbeats for who does it.

Nothing here knows where the run's machines are or how they were rented.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from kldcloud.pipeline.life import (
    WORKING,
    AttemptRecord,
    DriverLife,
    WorkerLife,
    driver_key,
    read_driver,
    read_worker,
)
from kldcloud.pipeline.qad_runs import is_qad
from kldcloud.status.committed import READS_IN_FLIGHT
from kldcloud.status.launch import LaunchStatus, launch_state, launch_status, stopped_with
from kldcloud.status.progress import ProgressReader, RunProgress
from kldcloud.status.qad import QadStatus, launches_of, qad_status
from kldcloud.status.run_files import RunFiles, attempt_started, list_run
from kldcloud.status.status import Status
from kldcloud.status.subject import StatusSubject
from kldcloud.status.vitals import (
    chunks_a_second,
    is_working,
    judge,
    judge_workers,
    plausible,
)
from kldcloud.store.keys import is_part
from kldcloud.store.s3_parallel import run_in_flight

MOST_DRIVERS: Final = 8
"""Attempts whose drivers are asked, the newest ones."""
MOST_WORKERS: Final = 4096


class StatusReader:
    """Looks at one run or launch, again and again."""

    def __init__(self, subject: StatusSubject) -> None:
        self._store = subject.store
        self._run = subject.run
        self._launch = subject.launch
        self._qad = subject.qad
        self._qad_launches: list[str] | None = None
        self._progress: ProgressReader | None = None

    def read(self, now: float) -> Status | QadStatus:
        """Look once.

        Args:
            now: Unix time in seconds.

        Raises:
            StoreError: the store could not be read.
        """
        if self._qad:
            return self._of_qad(now)
        launches = self._launches([self._launch] if self._launch else [], now)
        runs = [each.run for launch in launches for each in launch.attempts[::-1]]
        self._run = self._run or next(filter(is_part, runs), "")
        if not self._run:
            return self._without_run(launches, now)
        if self._launch and is_qad(self._store, self._run):
            self._qad, self._qad_launches = self._run, [self._launch]
            return self._of_qad(now)
        files = list_run(self._store, self._run)
        drivers = self._drivers(files)
        others = {each.launch for each in drivers if is_part(each.launch)} - {self._launch}
        launches += self._launches(sorted(others), now)
        records = {each.launch: each.record for each in launches}
        drivers = [stopped_with(records.get(each.launch), each) for each in drivers]
        # An older driver that still works, while a newer one gave up, is the one that matters.
        driver = next((each for each in drivers if is_working(each, now)), None)
        driver = driver or next(iter(drivers), None)
        if self._progress is None:
            self._progress = ProgressReader(self._store, self._run)
        progress = self._progress.read(files)
        last = max((a for each in launches for a in each.attempts), key=_id, default=None)
        state = judge(driver, last, finished=progress.finished, now=now)
        status = self._of_run(files, progress, driver, last, state)
        status = replace(status, launches=launches)
        if state == "running" and driver is not None and is_working(driver, now):
            return self._with_work(status, files, driver, now)
        return status

    def _of_qad(self, now: float) -> QadStatus:
        if self._qad_launches is None:
            self._qad_launches = launches_of(self._store, self._qad)
        launches = self._launches(self._qad_launches, now)
        return qad_status(self._store, self._qad, now, launches)

    def _of_run(
        self,
        files: RunFiles,
        progress: RunProgress,
        driver: DriverLife | None,
        last: AttemptRecord | None,
        state: str,
    ) -> Status:
        status = Status(
            store=self._store.uri,
            run=self._run,
            state=state,
            stage=_stage(state, driver, progress),
            encoding=progress.encoding,
            started=attempt_started(min(files.attempts, default="")),
            updated=max(
                (each.updated for each in (driver, last) if each is not None), default=None
            ),
            attempts=len(files.attempts),
            stages=progress.stages,
            results=progress.results,
            done=progress.done,
            total=progress.total or 0,
            odd=progress.odd,
        )
        if driver is not None:
            status = replace(status, label=driver.label)
            if progress.total is None:
                # Before the plan is noted, its driver alone knows how much there is to do.
                status = replace(status, done=driver.done, total=driver.total)
        if state == "preparing" and last is not None:
            status = replace(status, label=last.label)
        if driver is not None and state != "finished":
            status = replace(status, failures=driver.failures)
        if state in {"failed", "stopped", "out-of-time"}:
            status = replace(status, error=_error(state, driver, last))
        return status

    def _with_work(self, status: Status, files: RunFiles, driver: DriverLife, now: float) -> Status:
        if driver.state == "reducing":
            return status  # its workers have gone, as they should
        rate = chunks_a_second(driver)
        left = status.total - status.done
        if rate is not None:
            status = replace(
                status,
                tokens_a_second=rate * driver.context,
                eta=now + left / rate if left > 0 else None,
            )

        def read(key: str, _: threading.Event) -> WorkerLife | None:
            return plausible(read_worker(self._store, key))

        keys = files.attempts[driver.attempt][:MOST_WORKERS]
        found = run_in_flight(read, keys, width=READS_IN_FLIGHT)
        lives = [each for each in found if each is not None]
        return replace(status, workers=judge_workers(driver, lives, now))

    def _without_run(self, launches: tuple[LaunchStatus, ...], now: float) -> Status:
        (launch,) = launches
        last = launch.last
        return Status(
            store=self._store.uri,
            run="",
            state=launch_state(launch.record, last, now),
            label=last.label if last else "",
            started=launch.attempts[0].started if launch.attempts else None,
            updated=last.updated if last else None,
            attempts=len(launch.attempts),
            error=last.error if last else "",
            launches=launches,
        )

    def _launches(self, names: Iterable[str], now: float) -> tuple[LaunchStatus, ...]:
        return tuple(launch_status(self._store, name, now) for name in names)

    def _drivers(self, files: RunFiles) -> list[DriverLife]:
        """Drivers' heartbeats, the newest attempt's first."""

        def read(attempt: str, _: threading.Event) -> DriverLife | None:
            found = plausible(read_driver(self._store, driver_key(self._run, attempt)))
            return found and replace(found, attempt=attempt)

        newest = list(files.attempts)[: -MOST_DRIVERS - 1 : -1]
        found = run_in_flight(read, newest, width=MOST_DRIVERS)
        return [each for each in found if each is not None]


def _stage(state: str, driver: DriverLife | None, progress: RunProgress) -> str:
    """How far the run is: as the driver says, else as its commits do."""
    if state == "finished":
        return state
    if driver is not None and driver.state in WORKING:
        return driver.state
    if not progress.stages or not all(each.complete for each in progress.stages):
        return "staging"
    if any(each.chunks_done != each.chunks for each in progress.results):
        return "measuring"
    return "reducing"


def _error(state: str, driver: DriverLife | None, last: AttemptRecord | None) -> str:
    """Why it ended, in the words of whoever decided the state."""
    if driver is None or last is None:
        return driver.error if driver else last.error if last else ""
    if last.attempt > driver.attempt or (last.attempt == driver.attempt and state == last.state):
        return last.error or driver.error
    return driver.error


def _id(attempt: AttemptRecord) -> str:
    return attempt.attempt
