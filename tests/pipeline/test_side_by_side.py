"""Two launches that are at one run at once: the second says so, and goes on."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from kldcloud.pipeline.life import DriverLife, driver_key, new_attempt
from kldcloud.pipeline.side_by_side import warn_of_another_driver
from kldcloud.store import Store, open_store
from tests.pipeline.sweeps import Notes, corpus, facts, result_bytes, sweep
from tests.tiny_models import tiny_pair


def _beat(store: Store, run: str, seen: float, *, state: str = "measuring", of: str = "") -> None:
    life = DriverLife(new_attempt(), launch=of, host="box\x1b[2J", updated=seen, state=state)
    store.write(driver_key(run, life.attempt), json.dumps(asdict(life)).encode())


def _said(store: Store, launch: str = "") -> list[str]:
    notes = Notes()
    warn_of_another_driver(store, "r-0", launch, notes)
    return notes.warnings


def test_who_is_at_work_is_told_of_with_nothing_that_a_terminal_obeys(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert not _said(store)
    _beat(store, "r-0", time.time() - 5, of="kld-a-12345678")
    (line,) = _said(store)
    said = r"another launch on box\\x1b\[2J was at r-0 \d+ s ago: unless it was killed, .*"
    assert re.fullmatch(said, line)
    # There is one driver of a launch at a time: this one came after the other was taken away.
    assert not _said(store, "kld-a-12345678")
    assert _said(store, "kld-b-12345678")


@pytest.mark.parametrize("state", ["finished", "failed", "stopped"])
def test_who_has_ended_is_not(tmp_path: Path, state: str) -> None:
    store = open_store(str(tmp_path))
    _beat(store, "r-0", time.time() - 5, state=state)
    assert not _said(store)


def test_nor_is_who_was_there_a_while_ago_or_gives_no_time(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    _beat(store, "r-0", time.time() - 40)
    assert not _said(store)
    _beat(store, "r-0", float("nan"))
    assert not _said(store)


@pytest.mark.usefixtures("one_ray")
def test_the_second_launch_says_so_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    pair = tiny_pair(tmp_path / "models", vocabulary=320, bos=True)
    job = facts(pair.base, [pair.candidate], [corpus(64, 2)])
    folder = tmp_path / "store"
    alone = Notes()
    run = sweep(job, folder, progress=alone).run
    before = result_bytes(folder, run)
    (folder / "runs" / run / "summary.json").unlink()
    _beat(open_store(str(folder)), run, time.time())
    notes = Notes()
    assert sweep(job, folder, progress=notes).run == run
    assert [line.partition(" was at ")[0] for line in alone.warnings + notes.warnings] == [
        r"another launch on box\x1b[2J"
    ]
    assert result_bytes(folder, run) == before
