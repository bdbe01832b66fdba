"""What people call a run or a launch, and all of a store's in one list."""

from __future__ import annotations

from pathlib import Path

import pytest

from kldcloud.errors import UserError
from kldcloud.report.status_text import run_lines
from kldcloud.status.run_list import list_runs
from kldcloud.status.subject import find_status
from kldcloud.store import open_store
from tests.status.kept_runs import (
    LAUNCH,
    NOW,
    RUN,
    KeptRun,
    attempt,
    shards,
)


@pytest.fixture
def kept(tmp_path: Path) -> KeptRun:
    return KeptRun(open_store(str(tmp_path / "store")))


def test_a_run_or_launch_is_found_by_its_id_a_prefix_or_as_the_latest(kept: KeptRun) -> None:
    kept.driver(attempt(7200))
    uri = kept.store.uri
    assert find_status("tiny", uri).run == RUN
    assert find_status("latest", uri).run == RUN
    kept.launch("kld-other-1", launched=NOW - 60)
    kept.launch("kld-older-1", launched=NOW - 9000)
    assert find_status("latest", uri).launch == "kld-other-1"
    assert find_status("kld-older-1", uri).launch == "kld-older-1"
    assert find_status("kld-ol", uri).launch == "kld-older-1"
    assert find_status(RUN, uri).run == RUN
    with pytest.raises(UserError, match="could be any of kld-older-1, kld-other-1"):
        find_status("kld-o", uri)
    with pytest.raises(UserError, match="no run nope in"):
        find_status("nope", uri)


def test_a_store_with_launches_alone_has_a_latest(kept: KeptRun) -> None:
    with pytest.raises(UserError, match="no run latest"):
        find_status("latest", kept.store.uri)
    kept.launch()
    assert find_status("latest", kept.store.uri).launch == LAUNCH


def test_runs_are_listed_the_newest_sign_of_life_last(kept: KeptRun) -> None:
    kept.measuring()
    kept.commit("Q8_0", shards()[0])
    kept.driver(attempt(3600))
    old = KeptRun(kept.store, "older-0123456789ab")
    old.note_plan()
    old.driver(attempt(90_000), updated=NOW - 80_000, state="stopped")
    kept.launch("kld-new-1")
    kept.attempt(attempt(40), "kld-new-1", updated=NOW - 1)
    kept.launch()  # of the run
    kept.attempt(attempt(3600), run=RUN, state="running")
    lines = list_runs(kept.store, NOW)
    assert [(each.id, each.kind, each.state) for each in lines] == [
        (old.run, "run", "stopped"),
        (RUN, "run", "running"),
        ("kld-new-1", "launch", "preparing"),
    ]
    assert (lines[1].name, lines[1].done, lines[1].total) == ("tiny", 4, 20)
    assert (lines[1].started, lines[1].updated) == (NOW - 3600, NOW - 4)
    text = [line.text for line in run_lines(lines, NOW)]
    assert text[2].split("  ")[0] == RUN
    assert "4 of 20" in text[2]
    assert "4 s ago" in text[2]


def test_runs_of_an_empty_store_are_none(kept: KeptRun) -> None:
    assert list_runs(kept.store, NOW) == []
