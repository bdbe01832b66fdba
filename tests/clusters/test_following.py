"""When a job is over: what its log, SkyPilot and the store say, where they do not say the same.

SkyPilot is stood in for here, so that it can be silent on purpose; tests/lab has the real one.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from kldcloud.clusters import following, skypilot
from kldcloud.clusters.following import Followed, follow
from kldcloud.clusters.sky_library import LogTee
from kldcloud.clusters.skypilot import SkyJob
from kldcloud.errors import EngineError, KldcloudError
from kldcloud.pipeline.life import AttemptRecord, LaunchRecord, attempt_key
from kldcloud.store import Store, open_store

JOB = SkyJob("kld-x", False, 1)
RECORD = LaunchRecord("kld-x", before="100-a")


class Tails:
    """Logs that end when they are told to: with a code, or never."""

    def __init__(self) -> None:
        self.codes: list[int | None] = []
        self.shown = 0
        self.hang = threading.Event()

    @contextmanager
    def tail(self, _: SkyJob, log: LogTee) -> Iterator[Any]:
        self.shown += 1
        log.write(f"log {self.shown}\n")
        code = self.codes.pop(0) if self.codes else None
        thread = threading.Thread(target=self.hang.wait if code is None else int, daemon=True)
        thread.code = code  # type: ignore[attr-defined]
        thread.start()
        yield thread


@pytest.fixture
def tails(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tails]:
    found = Tails()
    monkeypatch.setattr(skypilot, "tail", found.tail)
    monkeypatch.setattr(following, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(following, "_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(following, "GRACE_SECONDS", 0.2)
    yield found
    found.hang.set()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def note(store: Store, attempt: str, state: str) -> None:
    record = AttemptRecord(attempt, state=state)
    store.write(attempt_key("kld-x", attempt), json.dumps(asdict(record)).encode())


def skypilot_says(monkeypatch: pytest.MonkeyPatch, *answers: SkyJob | KldcloudError | None) -> None:
    waiting = list(answers)

    def find_job(*_: object, **__: object) -> SkyJob | None:
        answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if isinstance(answer, KldcloudError):
            raise answer
        return answer

    monkeypatch.setattr(skypilot, "find_job", find_job)


def test_a_log_that_ends_well_is_the_end(tails: Tails, store: Store) -> None:
    tails.codes = [0]
    assert follow(JOB, RECORD, store) == Followed(0, ("log 1",))


def test_a_job_that_does_not_end_is_over_once_its_driver_said_so(
    tails: Tails, store: Store
) -> None:
    note(store, "100-a", "failed")
    note(store, "200-b", "finished")
    assert follow(JOB, RECORD, store) == Followed(None, ("log 1",))
    assert not tails.hang.is_set()


@pytest.mark.parametrize(
    ("attempt", "state", "managed"),
    [
        ("100-a", "failed", False),  # of an earlier launch: the machines only now set up
        ("200-b", "running", False),
        ("200-b", "stopped", True),  # preempted: SkyPilot starts it again
        ("200-b", "failed", True),
    ],
)
def test_what_may_go_on_is_waited_for(
    tails: Tails, store: Store, attempt: str, state: str, managed: bool
) -> None:
    note(store, attempt, state)
    record = LaunchRecord("kld-x", before="100-a", managed=managed)
    threading.Timer(0.6, tails.hang.set).start()
    tails.codes = [None, 0]
    with pytest.MonkeyPatch.context() as patch:
        skypilot_says(patch, JOB)
        assert follow(JOB, record, store).code == 0
    assert tails.shown == 2


def test_a_log_that_broke_off_without_a_code_is_no_success(
    tails: Tails, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tails.hang.set()
    skypilot_says(monkeypatch, None)
    assert follow(JOB, RECORD, store).code is None


def test_a_connection_that_broke_is_made_again(
    tails: Tails, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tails.codes = [1, 1, 0]
    skypilot_says(monkeypatch, JOB)
    assert follow(JOB, RECORD, store) == Followed(0, ("log 1", "log 2", "log 3"))


def test_a_job_that_is_no_more_has_failed(
    tails: Tails, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tails.codes = [100]
    skypilot_says(monkeypatch, None)
    assert follow(JOB, RECORD, store) == Followed(100, ("log 1",))


def test_where_nobody_can_say_the_machines_are_left_alone_and_the_person_is_told(
    tails: Tails, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tails.codes = [1] * 20
    skypilot_says(monkeypatch, EngineError("no route"))
    with pytest.raises(EngineError, match="lost sight of the job: no route") as caught:
        follow(JOB, RECORD, store)
    assert "kldcloud down kld-x" in str(caught.value)


def test_an_answer_in_between_begins_the_count_anew(
    tails: Tails, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = EngineError("no route")
    tails.codes = [1] * 10 + [0]
    skypilot_says(monkeypatch, *[away] * 5, JOB, *[away] * 4, JOB)
    assert follow(JOB, RECORD, store).code == 0
