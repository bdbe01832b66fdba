"""Heartbeats say who works on a run, how fast, on which machines and for how much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kldcloud.report.status_json import status_facts
from kldcloud.status.reader import StatusReader
from kldcloud.status.run_list import list_runs
from kldcloud.status.subject import StatusSubject
from kldcloud.status.vitals import SILENT_SECONDS, STUCK_SECONDS
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


# Who works on it


def test_speed_and_time_left_come_from_this_attempts_part_of_the_work(kept: KeptRun) -> None:
    kept.measuring()
    for shard in shards():
        kept.commit("Q8_0", shard)
    kept.driver(
        attempt(600), started=NOW - 104, updated=NOW - 4, done=10, total=20, done_at_start=8
    )
    status = kept.status()
    assert (status.done, status.total) == (20, 30)
    assert status.tokens_a_second == pytest.approx(2 * 64 / 100)
    # 10 of the 30 evaluations are left, at 2 in 100 seconds.
    assert status.eta == pytest.approx(NOW + 500)
    assert "20 of 30 chunk evaluations, 1 tokens/s, about 8 min left" in kept.shown()


@pytest.mark.parametrize(
    "young",
    [
        {"started": NOW - 7, "updated": NOW - 4, "done": 6},
        {"done": 8, "done_at_start": 8},
        {"done": 3, "done_at_start": 8},
        {"done": 8, "state": "reducing"},
    ],
)
def test_before_anything_can_be_said_of_speed_nothing_is(
    kept: KeptRun, young: dict[str, Any]
) -> None:
    kept.measuring()
    kept.driver(attempt(600), **young)
    status = kept.status()
    assert status.state == "running"
    assert (status.tokens_a_second, status.eta) == (None, None)


def test_a_hung_worker_is_named_and_a_slow_an_idle_and_a_loading_one_are_not(
    kept: KeptRun,
) -> None:
    kept.measuring()
    this = attempt(7200)
    # All workers together do a chunk in 60 seconds, so one takes about five minutes.
    kept.driver(this, started=NOW - 7200, done=120, workers=5)
    hung = kept.key("Q4_K_M", shards()[1])
    kept.worker(this, 0, moved=NOW - 6000, since=NOW - 6600, chunks=3, task=hung)
    kept.worker(this, 1, moved=NOW - 1500, since=NOW - 4000, chunks=3)
    kept.worker(this, 2, moved=NOW - 6000, since=0, chunks=0, task="")
    kept.worker(this, 3, moved=NOW - 2000, since=NOW - 2000, chunks=0)
    kept.worker(this, 4, updated=NOW - 400, moved=NOW - 410)
    workers = kept.status().workers
    assert workers is not None
    assert (workers.count, workers.alive) == (5, 4)
    (stuck,) = workers.stuck
    assert (stuck.worker, stuck.host, stuck.task) == (0, "node-0", hung)
    assert stuck.seconds == 6000 - 3
    assert [each.worker for each in workers.silent] == [4]
    text = kept.shown()
    assert f"worker 0 on node-0 is stuck: nothing done for 1 h 39 min at {hung}" in text
    assert "worker 4 on node-4 has been silent for 6 min" in text


def test_a_worker_slower_than_all_others_is_measured_by_its_own_pace(kept: KeptRun) -> None:
    kept.measuring()
    this = attempt(7200)
    # A chunk a second on the whole; this one has needed 200 seconds for each of its three.
    kept.driver(this, started=NOW - 3600, done=3600)
    kept.worker(this, 0, moved=NOW - 1000, since=NOW - 1600, chunks=3)
    kept.worker(this, 1, moved=NOW - 1000, since=NOW - 1003, chunks=3)
    workers = kept.status().workers
    assert workers is not None
    assert [each.worker for each in workers.stuck] == [1]


def test_a_worker_whose_clock_is_wrong_is_not_stuck_for_that(kept: KeptRun) -> None:
    kept.measuring()
    this = attempt(7200)
    kept.driver(this, started=NOW - 3600, done=3600)
    ahead = NOW + 5000
    kept.worker(this, 0, updated=ahead, moved=ahead - 2, since=ahead - 9)
    kept.worker(this, 1, updated=ahead, moved=ahead - STUCK_SECONDS - 1, since=ahead - 309)
    workers = kept.status().workers
    assert workers is not None
    assert workers.alive == 2
    assert [each.worker for each in workers.stuck] == [1]


def test_a_dead_driver_is_no_matter_of_its_workers(kept: KeptRun) -> None:
    kept.measuring()
    kept.commit("Q8_0", shards()[0])
    this = attempt(7200)
    kept.driver(this, updated=NOW - SILENT_SECONDS - 1)
    kept.worker(this, 0, moved=NOW - 6000)
    status = kept.status()
    assert (status.state, status.stage, status.workers) == ("gone", "measuring", None)
    assert status.settled
    assert (status.tokens_a_second, status.eta) == (None, None)
    words = "no sign of life for 3 min: the driver is gone; launch the job again to go on"
    assert words in kept.shown()
    kept.driver(this, updated=NOW - SILENT_SECONDS + 1)
    assert kept.status().state == "running"


@pytest.mark.parametrize(
    ("facts", "state", "words"),
    [
        ({"state": "failed", "error": "no space left"}, "failed", "failed: no space left"),
        ({"state": "stopped", "error": "KeyboardInterrupt"}, "stopped", "KeyboardInterrupt"),
        (
            {"state": "finished", "failures": ("Q8_0 on text: k: broken",)},
            "failed",
            "given up: Q8_0 on text: k: broken",
        ),
    ],
)
def test_a_driver_that_said_how_it_ended_is_quoted_however_long_ago(
    kept: KeptRun, facts: dict[str, Any], state: str, words: str
) -> None:
    kept.measuring()
    kept.driver(attempt(90_000), updated=NOW - 80_000, **facts)
    status = kept.status()
    assert (status.state, status.stage, status.settled) == (state, "measuring", True)
    assert words in kept.shown()


def test_of_several_drivers_the_one_at_work_counts_else_the_newest(kept: KeptRun) -> None:
    kept.measuring()
    kept.driver(attempt(7200), label="first")
    kept.driver(attempt(600), state="stopped", error="KeyboardInterrupt")
    status = kept.status()
    assert (status.state, status.label, status.attempts) == ("running", "first", 2)
    assert status.started == NOW - 7200
    kept.driver(attempt(7200), label="first", updated=NOW - 7000)
    assert kept.status().state == "stopped"


# Launches on other machines


def test_money_is_the_time_of_all_attempts_at_the_price_of_all_machines(kept: KeptRun) -> None:
    kept.measuring()
    first, second = attempt(3600), attempt(900)
    kept.launch(hourly=7.2)
    kept.attempt(first, run=RUN, started=NOW - 3600, updated=NOW - 1800, state="running")
    kept.attempt(second, run=RUN, started=NOW - 905, updated=NOW - 5, state="running")
    kept.driver(first, launch=LAUNCH, updated=NOW - 1800)
    kept.driver(second, launch=LAUNCH)
    status = kept.status()
    (launch,) = status.launches
    assert launch.cost == pytest.approx((1800 + 900) / 3600 * 7.2)
    assert not launch.maybe_up
    text = kept.shown()
    assert "2 x AWS p5.4xlarge H100:1 [spot], $7.20 an hour, about $5.40 so far" in text
    assert "may still be up" not in text


@pytest.mark.parametrize(
    ("facts", "down", "warned"),
    [
        ({"state": "failed"}, 0.0, True),
        ({"state": "finished"}, 0.0, True),
        ({"state": "running", "updated": NOW - 1000}, 0.0, True),
        ({"state": "running"}, 0.0, False),
        ({"state": "preparing"}, 0.0, False),
        ({"state": "failed"}, NOW - 10, False),
    ],
)
def test_machines_that_may_still_cost_money_are_warned_of(
    kept: KeptRun, facts: dict[str, Any], down: float, warned: bool
) -> None:
    kept.launch(down=down)
    kept.attempt(attempt(3600), **facts)
    text = kept.shown(launch=LAUNCH)
    command = f"kldcloud down {LAUNCH} --store {kept.store.uri}"
    assert (f"machines may still be up: {command}" in text) == warned


@pytest.mark.parametrize("down", [0.0, NOW - 1])
def test_whose_machines_were_given_back_has_stopped_whatever_it_last_said(
    kept: KeptRun, down: float
) -> None:
    kept.launch(launched=NOW - 60, down=down)
    assert kept.status(launch=LAUNCH).state == ("stopped" if down else "starting")
    kept.attempt(attempt(50), state="preparing")
    assert kept.status(launch=LAUNCH).state == ("stopped" if down else "preparing")
    assert [each.state for each in list_runs(kept.store, NOW)] == [
        "stopped" if down else "preparing"
    ]
    kept.attempt(attempt(50), state="running", run=RUN)
    kept.measuring()
    kept.driver(attempt(50), launch=LAUNCH, updated=NOW - 5)
    expected = "stopped" if down else "running"
    assert kept.status(launch=LAUNCH).state == kept.status().state == expected
    (line,) = list_runs(kept.store, NOW)
    assert (line.id, line.state) == (RUN, expected)
    assert ("workers:" in kept.shown()) is not bool(down)
    kept.driver(attempt(50), launch=LAUNCH, updated=NOW - 1000)
    (line,) = list_runs(kept.store, NOW)
    assert line.state == kept.status().state == ("stopped" if down else "gone")


def test_a_launch_without_a_run_shows_what_its_machines_are_doing(kept: KeptRun) -> None:
    kept.launch(launched=NOW - 60)
    assert kept.status(launch=LAUNCH).state == "starting"
    kept.attempt(attempt(50), label="installing the engine")
    status = kept.status(launch=LAUNCH)
    assert (status.run, status.state, status.label) == ("", "preparing", "installing the engine")
    assert "preparing: installing the engine" in kept.shown(launch=LAUNCH)
    kept.attempt(attempt(50), state="failed", error="nvcc: not found")
    status = kept.status(launch=LAUNCH)
    assert (status.state, status.error, status.settled) == ("failed", "nvcc: not found", True)
    assert status_facts(status)["launches"][0]["attempts"][0]["error"] == "nvcc: not found"


def test_a_launch_leads_to_its_run_once_that_is_known(kept: KeptRun) -> None:
    kept.launch()
    kept.attempt(attempt(600), state="preparing")
    reader = StatusReader(StatusSubject(kept.store, launch=LAUNCH))
    assert reader.read(NOW).run == ""
    kept.attempt(attempt(600), state="running", run=RUN)
    kept.measuring()
    kept.driver(attempt(600), launch=LAUNCH)
    status = reader.read(NOW)
    assert (status.run, status.state) == (RUN, "running")
    assert [each.launch for each in status.launches] == [LAUNCH]


def test_after_a_preemption_the_new_machines_are_seen_getting_ready(kept: KeptRun) -> None:
    kept.measuring()
    first, second = attempt(3600), attempt(60)
    kept.launch(managed=True)
    kept.attempt(first, run=RUN, state="running", updated=NOW - 1000)
    kept.driver(first, launch=LAUNCH, updated=NOW - 1000)
    status = kept.status()
    assert (status.state, status.settled) == ("gone", False)
    kept.attempt(second, label="downloading models")
    status = kept.status()
    assert (status.state, status.label) == ("preparing", "downloading models")
    assert "preparing: downloading models" in kept.shown()
    kept.attempt(second, state="failed", error="no such file")
    status = kept.status()
    assert (status.state, status.error) == ("failed", "no such file")


def test_time_that_ran_out_is_told_apart_from_a_stop(kept: KeptRun) -> None:
    kept.measuring()
    this = attempt(3600)
    kept.launch()
    kept.attempt(this, run=RUN, state="out-of-time", error="max_duration of 1 h is over")
    kept.driver(this, launch=LAUNCH, state="stopped", error="SystemExit")
    status = kept.status()
    assert (status.state, status.error) == ("out-of-time", "max_duration of 1 h is over")
