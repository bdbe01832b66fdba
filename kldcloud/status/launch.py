"""Launches on other machines as their store shows them: attempts, money, and what may still run."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from kldcloud.pipeline.life import (
    AttemptRecord,
    DriverLife,
    LaunchRecord,
    attempt_key,
    launch_key,
    read_attempt,
    read_launch,
)
from kldcloud.status.vitals import ENDED, SILENT_SECONDS, age, judge, plausible
from kldcloud.store.base import ObjectInfo, Store
from kldcloud.store.s3_parallel import run_in_flight

Life = TypeVar("Life", AttemptRecord, DriverLife)

STARTING_SECONDS: Final = 1800.0
"""Machines that have not said a word for so long after their launch are not expected any more."""
MOST_ATTEMPTS: Final = 256
"""Attempts of a launch that are read, the newest: machines taken away more often cost more time
than they save."""
_READS_IN_FLIGHT: Final = 16
_MACHINE_PARTS: Final = 3
_ATTEMPT_PARTS: Final = 4


@dataclass(frozen=True, slots=True)
class LaunchStatus:
    """A launch and what it has cost.

    Attributes:
        launch: its id.
        record: what was rented; None if that is unreadable.
        attempts: in order of time.
        cost: US dollars so far, of the time that drivers were there.
        maybe_up: nobody works there, and nobody has given the machines back.
    """

    launch: str
    record: LaunchRecord | None
    attempts: tuple[AttemptRecord, ...]
    cost: float
    maybe_up: bool

    @property
    def hourly(self) -> float:
        """US dollars an hour of all machines."""
        return self.record.hourly if self.record else 0.0

    @property
    def last(self) -> AttemptRecord | None:
        return self.attempts[-1] if self.attempts else None


def recovers(launches: Iterable[LaunchStatus]) -> bool:
    """Whether machines that were taken away will be replaced, without anybody's doing."""
    return any(
        each.record is not None and each.record.managed and not each.record.down
        for each in launches
    )


def launches_in(listing: Iterable[ObjectInfo]) -> dict[str, list[str]]:
    """Launch -> its attempts in order of time, from a listing of `launches/`."""
    found: dict[str, list[str]] = {}
    for info in listing:
        parts = info.key.split("/")
        if len(parts) == _MACHINE_PARTS and parts[2] == "machine.json":
            found.setdefault(parts[1], [])
        elif len(parts) == _ATTEMPT_PARTS and parts[2] == "attempts":
            attempt = parts[3].removesuffix(".json")
            found.setdefault(parts[1], []).append(attempt)
    return {launch: sorted(attempts) for launch, attempts in found.items()}


def launch_status(store: Store, launch: str, now: float) -> LaunchStatus:
    """Read one launch."""
    attempts = launches_in(store.list(f"launches/{launch}/")).get(launch, [])
    record = plausible(read_launch(store, launch_key(launch)))

    def read(attempt: str, _: threading.Event) -> AttemptRecord | None:
        found = plausible(read_attempt(store, attempt_key(launch, attempt)))
        return found and replace(found, attempt=attempt)

    found = run_in_flight(read, attempts[-MOST_ATTEMPTS:], width=_READS_IN_FLIGHT)
    records = tuple(stopped_with(record, each) for each in found if each is not None)
    hourly = record.hourly if record else 0.0
    seconds = sum(max(0.0, each.updated - each.started) for each in records)
    return LaunchStatus(
        launch, record, records, seconds * hourly / 3600, _maybe_up(record, records, now)
    )


def stopped_with(record: LaunchRecord | None, found: Life) -> Life:
    """A sign of life as it is once its launch's machines were given back, whatever it says."""
    # The next launch notes anew that they are up, before it asks for any.
    if record is None or not record.down or found.state in ENDED:
        return found
    return replace(found, state="stopped")


def launch_state(record: LaunchRecord | None, last: AttemptRecord | None, now: float) -> str:
    """State of a launch that has no run: starting before its machines have said a word."""
    if last is None and record is not None and age(record.launched, now) < STARTING_SECONDS:
        return "stopped" if record.down else "starting"
    return judge(None, last, finished=False, now=now)


def newest_launch(store: Store, launches: Mapping[str, list[str]]) -> tuple[str, str] | None:
    """When the newest launch last began, as an attempt's id sorts, and which one it is."""
    found = []
    for launch, attempts in launches.items():
        if attempts:
            found.append((attempts[-1], launch))
        elif record := plausible(read_launch(store, launch_key(launch))):
            found.append((f"{int(record.launched * 1000):013d}", launch))
    return max(found, default=None)


def _maybe_up(record: LaunchRecord | None, attempts: tuple[AttemptRecord, ...], now: float) -> bool:
    if record is None or record.down:
        return False
    if not attempts:
        return age(record.launched, now) > STARTING_SECONDS
    last = attempts[-1]
    return last.state in ENDED or age(last.updated, now) >= SILENT_SECONDS
