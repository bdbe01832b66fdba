"""A job followed to its end: by SkyPilot's word, or by the store's where SkyPilot does not say.

A machine that dies in the middle can leave a scheduler waiting for its part for ever, long after
the driver has committed all there is. What the driver noted in the store is then the end.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from kldcloud.clusters import skypilot
from kldcloud.clusters.known_launches import last_attempt
from kldcloud.clusters.sky_library import LogTee
from kldcloud.clusters.skypilot import SkyJob
from kldcloud.errors import EngineError, KldcloudError, StoreError
from kldcloud.pipeline.life import LaunchRecord
from kldcloud.store import store_option
from kldcloud.store.base import Store

_LOOK_SECONDS: Final = 5.0
GRACE_SECONDS: Final = 60.0
"""How long a job may take to end after its driver has: the machines' own clearing up."""
_AGAIN_SECONDS: Final = 10.0
_TRIES: Final = 6


@dataclass(frozen=True, slots=True)
class Followed:
    """A job that came to its end.

    Attributes:
        code: of the job, 0 if it succeeded; None where its log gave none.
        last: lines of the log.
    """

    code: int | None
    last: tuple[str, ...]


def follow(job: SkyJob, record: LaunchRecord, store: Store) -> Followed:
    """Show a job's log until the job is over.

    Args:
        job: what to follow.
        record: the launch that it belongs to.
        store: where its driver notes how far it is.

    Raises:
        EngineError: nobody can say how the job is doing; its machines may be at work.
        KeyboardInterrupt: passes through: the job goes on.
    """
    log = LogTee()
    failed = 0
    while True:
        with skypilot.tail(job, log) as tail:
            if not _wait(tail, record, store):
                return Followed(None, tuple(log.last))
        if tail.code == skypilot.SUCCEEDED:
            return Followed(tail.code, tuple(log.last))
        # The connection may have broken, not the job, whose machines must not be taken from it.
        try:
            if _is_over(record, store) or not under_way(record):
                return Followed(tail.code, tuple(log.last))
            failed = 0
        except KldcloudError as error:
            failed += 1
            if failed >= _TRIES:
                raise _lost(record, store, error) from error
        time.sleep(_AGAIN_SECONDS)


def under_way(record: LaunchRecord) -> SkyJob | None:
    """The launch's job, if it has one that has not ended."""
    return skypilot.find_job(record.launch, managed=record.managed, active=True)


def _wait(tail: skypilot.Tail, record: LaunchRecord, store: Store) -> bool:
    """Whether the log came to its end before the store's word outlived its grace."""
    over_since: float | None = None
    while tail.is_alive():
        tail.join(_LOOK_SECONDS)
        try:
            over = _is_over(record, store)
        except StoreError:  # away for a while: the log says how the job is doing
            continue
        if not over:
            over_since = None
        elif over_since is None:
            over_since = time.monotonic()
        elif time.monotonic() - over_since > GRACE_SECONDS:
            return False
    return True


def _is_over(record: LaunchRecord, store: Store) -> bool:
    """Whether the driver noted an end after which nobody starts it again."""
    attempt = last_attempt(store, record.launch)
    if attempt is None or attempt.attempt == record.before:
        return False
    # SkyPilot may be told to run a managed job again that failed.
    ends = {"finished"} if record.managed else {"finished", "failed", "out-of-time"}
    return attempt.state in ends


def _lost(record: LaunchRecord, store: Store, error: KldcloudError) -> EngineError:
    at = f"{record.launch} {store_option(store.uri)}"
    return EngineError(
        f"lost sight of the job: {error.message}",
        hint=f"it may be at work: kldcloud status {at} looks into the store, kldcloud logs {at} "
        f"comes back to it, kldcloud down {at} gives its machines back",
    )
