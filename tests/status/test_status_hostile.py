"""Whoever can write to a store can write nonsense: it is passed over, named, and steers nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kldcloud.corpus.chunks import Shard
from kldcloud.pipeline.life import MAX_LIFE_BYTES, driver_key, launch_key, worker_key
from kldcloud.report.status_json import status_facts
from kldcloud.report.status_text import status_line, status_lines
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


def test_partials_that_are_not_what_their_keys_promise_are_passed_over_and_named(
    kept: KeptRun,
) -> None:
    kept.measuring()
    first, second, third = shards()
    kept.commit("Q8_0", first)
    moved = kept.partial("Q8_0", first).to_bytes()
    kept.store.write(kept.key("Q8_0", second), moved)
    kept.store.write(kept.key("Q8_0", third), b"PAR1")
    kept.store.write(kept.key("Q4_K_M", first), b"x" * 40_000 + b"\xff\xff\xff\x7fPAR1")
    kept.store.write(kept.key("Q4_K_M", second), b"x" * 40_000 + b"\x40\0\0\0PAR1")
    kept.store.write(kept.key("Q4_K_M", third), b"")
    # No shards of this run: they would count chunks twice.
    kept.commit("Q4_K_M", Shard(0, 2))
    kept.commit("Q4_K_M", Shard(8, 4))
    status = kept.status()
    assert [each.chunks_done for each in status.results] == [4, 0]
    assert sorted(status.odd) == sorted(
        kept.key(candidate, shard)
        for candidate, shard in [
            ("Q8_0", second),
            ("Q8_0", third),
            *(("Q4_K_M", shard) for shard in shards()),
        ]
    )
    assert (
        "chunks 0..3, not the partial of Q8_0 on text, chunks 4..7"
        in status.odd[kept.key("Q8_0", second)]
    )


@pytest.mark.parametrize("count", [0.0, -31.0, 30.0])
def test_moments_that_do_not_count_their_records_are_passed_over(
    kept: KeptRun, count: float
) -> None:
    kept.measuring()
    whole = kept.partial("Q8_0", shards()[2])
    object.__setattr__(whole.moments[0], "count", count)
    kept.store.write(kept.key("Q8_0", shards()[2]), whole.to_bytes())
    assert list(kept.status().odd.values()) == ["its moments do not count its records"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"nonsense",
        b"[" * 100_000,
        b'{"stages": {"text": 1}, "candidates": "Q8_0", "corpora": 7}',
        b'{"stages": [["text"], "text", [1, 2]], "candidates": [1, null], "corpora": [["a", 1e9]]}',
        b'{"stages": [["\\u001b[31m", "x"], ["text", "../../etc"]], "candidates": ["\\u001b[2J"]}',
        b'{"corpora": [["text", -1, 64], ["text", true], ["text", 99999999999], ["..", 5, 64]]}',
        b"x" * (9 << 20),
    ],
)
def test_a_plan_of_nonsense_is_no_plan(kept: KeptRun, data: bytes) -> None:
    kept.store.write(f"runs/{RUN}/plan.json", data)
    kept.driver(attempt(60))
    status = kept.status()
    assert (status.state, status.stages, status.results) == ("running", (), ())
    assert kept.shown().isascii()


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b"null",
        b'{"attempt": "a", "updated": Infinity, "state": "measuring"}',
        b'{"attempt": "a", "updated": NaN, "state": "measuring"}',
        b'{"attempt": "a", "updated": 1e300, "state": "measuring"}',
        b'{"attempt": "a", "updated": 1.0, "done": -5}',
        b'{"attempt": "a"}' + b" " * MAX_LIFE_BYTES,
    ],
)
def test_heartbeats_of_nonsense_are_no_sign_of_life(kept: KeptRun, data: bytes) -> None:
    kept.measuring()
    this = attempt(60)
    kept.store.write(driver_key(RUN, this), data)
    assert kept.status().state == "gone"
    kept.store.write(launch_key(LAUNCH), data)
    assert kept.status(launch=LAUNCH).state == "gone"
    kept.driver(this)
    kept.store.write(worker_key(RUN, this, 0), data)
    workers = kept.status().workers
    assert workers is not None
    assert workers.alive == 0


def test_nothing_from_the_store_steers_a_terminal_and_all_of_it_is_json(kept: KeptRun) -> None:
    evil = "\x1b]0;owned\x07\r\n\u202e" * 50
    kept.measuring()
    this = attempt(60)
    kept.launch(machine=evil, cluster=evil)
    kept.attempt(this, run=evil, label=evil, error=evil, host=evil, state=evil)
    kept.driver(this, label=evil, host=evil, failures=[evil] * 40, error=evil, launch=LAUNCH)
    kept.worker(this, 0, host=evil, task=evil, moved=1.0)
    kept.worker(this, 1, host=evil, task=evil, updated=1.0, moved=1.0)
    kept.store.write(kept.key("Q8_0", shards()[0]), b"x" * 100)
    status = kept.status()
    assert status.workers is not None
    assert status.workers.stuck
    lines = [line.text for line in status_lines(status, NOW)]
    lines += [line.text for line in status_lines(kept.status(launch=LAUNCH), NOW)]
    lines.append(status_line(status, NOW))
    assert all(line.isprintable() for line in lines)
    assert json.loads(json.dumps(status_facts(status), allow_nan=False))["run"] == RUN


def test_a_driver_cannot_lead_out_of_the_launches(kept: KeptRun) -> None:
    kept.measuring()
    kept.driver(attempt(60), launch="../runs")
    assert kept.status().launches == ()
