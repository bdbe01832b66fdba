"""A distillation's status reads the store alone: how far it is, who is there, what came of it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from kldcloud.errors import UserError
from kldcloud.pipeline.qad_runs import FoundQad, find_any
from kldcloud.pipeline.runs import FoundRun, job_bytes
from kldcloud.report.status_json import status_facts
from kldcloud.report.status_text import run_lines, status_line, status_lines
from kldcloud.status.qad import QadStatus
from kldcloud.status.reader import StatusReader
from kldcloud.status.run_list import list_runs
from kldcloud.status.subject import StatusSubject, find_status
from kldcloud.status.vitals import SILENT_SECONDS
from kldcloud.store import open_store
from tests.status.kept_qads import LOOKS, QAD, SWEEP, KeptQad
from tests.status.kept_runs import LAUNCH, NOW, KeptRun, attempt


@pytest.fixture
def kept(tmp_path: Path) -> KeptQad:
    kept = KeptQad(open_store(str(tmp_path / "store")))
    kept.job()
    return kept


# How far it is


def test_training_shows_its_step_its_loss_its_looks_and_the_time_left(kept: KeptQad) -> None:
    kept.progress()
    status = kept.status()
    assert (status.state, status.stage, status.settled) == ("running", "training", False)
    # 3 steps of 1,024 tokens at 64 a second, from the last step on.
    assert status.eta == NOW - 5 + 3 * 1024 / 64
    assert kept.shown().splitlines() == [
        f"{QAD}  running: training  (last sign of life 3 s ago)",
        "step 7 of 10, loss 0.210000 nats a token, 64 tokens/s, about 43 s left",
        "held-out KLD 0.250000 at the start, 0.190000 after step 5, the best so far",
    ]
    line = status_line(status, NOW)
    assert line.startswith(f"{QAD}; running: training  (last sign of life 3 s ago); step 7 of 10")
    assert line.endswith("; held-out KLD 0.190000 after step 5")


@pytest.mark.parametrize(
    ("latest", "best", "said"),
    [
        (LOOKS[0], LOOKS[0], "held-out KLD 0.250000 at the start"),
        (LOOKS[2], LOOKS[1], "0.200000 after step 10, best 0.190000 after step 5"),
        (LOOKS[2], LOOKS[0], "0.200000 after step 10, and none better"),
    ],
)
def test_looks_say_where_the_best_was(kept: KeptQad, latest: Any, best: Any, said: str) -> None:
    kept.progress(latest=latest, best=best)
    assert kept.shown().splitlines()[2].endswith(said)


def test_loading_and_the_first_look_are_seen(kept: KeptQad) -> None:
    nothing = {"kld": None, "start": None, "latest": None, "best": None, "tokens_per_second": None}
    kept.progress(stage="loading", step=0, **nothing)
    assert kept.shown().splitlines() == [
        f"{QAD}  running: loading  (last sign of life 3 s ago)",
        "step 0 of 10",
    ]


def test_who_measures_has_no_pace_of_training(kept: KeptQad) -> None:
    kept.progress(stage="measuring", step=10, moved=NOW - 5000)
    status = kept.status()
    assert (status.state, status.tokens_a_second, status.eta, status.still) == (
        "running",
        None,
        None,
        None,
    )
    assert "running: measuring the trained file" in kept.shown()


# Whether it lives


def test_a_run_that_has_said_nothing_for_a_while_is_gone(kept: KeptQad) -> None:
    kept.progress(seen=NOW - SILENT_SECONDS + 1)
    assert kept.status().state == "running"
    kept.progress(seen=NOW - SILENT_SECONDS)
    status = kept.status()
    assert (status.state, status.stage, status.eta, status.settled) == ("gone", "", None, True)
    assert kept.shown().splitlines()[:2] == [
        f"{QAD}  no sign of life for 3 min: the driver is gone; launch the job again to go on",
        "step 7 of 10, loss 0.210000 nats a token",
    ]


def test_a_run_of_which_nothing_but_its_job_is_known_is_gone(kept: KeptQad) -> None:
    assert kept.shown() == (
        f"{QAD}  no sign of life: the driver is gone; launch the job again to go on"
    )


@pytest.mark.parametrize(
    ("changes", "still"),
    [
        ({"moved": NOW - 302}, None),
        ({"moved": NOW - 304}, 301.0),
        # A step takes 100 s: ten of them are no reason to worry.
        ({"moved": NOW - 990, "tokens_per_second": 10.24}, None),
        ({"moved": NOW - 1100, "tokens_per_second": 10.24}, 1097.0),
        # Nobody knows how long loading takes.
        ({"moved": NOW - 1700, "stage": "loading", "tokens_per_second": None}, None),
        ({"moved": NOW - 2000, "stage": "loading", "tokens_per_second": None}, 1997.0),
    ],
)
def test_one_that_beats_and_does_no_step_may_hang(
    kept: KeptQad, changes: dict[str, Any], still: float | None
) -> None:
    kept.progress(**changes)
    assert kept.status().still == still
    assert ("it may hang" in kept.shown()) == (still is not None)


def test_how_it_ended_is_said_in_its_words(kept: KeptQad) -> None:
    kept.progress(stage="stopped", error="KeyboardInterrupt")
    assert "stopped: KeyboardInterrupt  (3 s ago)" in kept.shown()
    kept.progress(stage="failed", error="training processes died")
    assert "failed: training processes died  (3 s ago)" in kept.shown()
    kept.progress(stage="training", seen=NOW - 900)
    refusal = {"message": "the loss is nan at step 8 of 10", "hint": "try a lower train.lr"}
    kept.store.write(f"qad/{QAD}/refused.json", json.dumps(refusal).encode())
    assert kept.status().state == "failed"
    assert "failed: the loss is nan at step 8 of 10" in kept.shown()
    # Launched again, it is tried again.
    kept.progress(stage="loading")
    assert kept.status().state == "running"


def test_charts_that_failed_are_a_warning(kept: KeptQad) -> None:
    kept.progress(warning="no charts for TensorBoard: No module named 'tensorboard'")
    assert kept.shown().splitlines()[-1].startswith("no charts for TensorBoard")


# What came of it


def test_a_finished_run_says_what_it_gained_and_which_run_shows_it(kept: KeptQad) -> None:
    kept.progress(stage="finished", step=10, latest=LOOKS[2])
    result = kept.result()
    status = kept.status()
    assert (status.state, status.settled, status.result) == ("finished", True, result)
    assert kept.shown().splitlines() == [
        f"{QAD}  finished  (3 s ago)",
        "step 10 of 10, loss 0.210000 nats a token",
        "held-out KLD 0.250000 at the start, 0.200000 after step 10, best 0.190000 after step 5",
        "held-out: KLD 0.1900 against 0.2500 of Q4_0-imat (-24.0%)",
        f"measured by run {SWEEP}",
        f"the trained file is qad/{QAD}/student.gguf",
    ]


def test_a_file_that_is_no_better_is_a_failure(kept: KeptQad) -> None:
    kept.progress(stage="finished")
    kept.result(failed="Q4_0-imat-qad is worse than Q4_0-imat on held-out text")
    status = kept.status()
    assert (status.state, status.settled) == ("failed", True)
    assert f"{QAD}  failed: Q4_0-imat-qad is worse than Q4_0-imat" in kept.shown()


def test_one_that_was_not_worth_training_says_so(kept: KeptQad) -> None:
    kept.progress(stage="finished", step=0, latest=LOOKS[0], best=LOOKS[0])
    kept.result(student="", steps=0, tokens=0, looks=LOOKS[:1], export="", verdict=())
    assert "nothing was trained: the init loses less than train.skip_below" in kept.shown()


def test_json_has_all_of_it(kept: KeptQad) -> None:
    kept.progress()
    found = json.loads(json.dumps(status_facts(kept.status()), allow_nan=False))
    assert (found["kind"], found["run"], found["state"]) == ("qad", QAD, "running")
    assert (found["step"], found["steps"], found["kld"]) == (7, 10, 0.21)
    assert found["heldout"] == {
        "start": asdict(LOOKS[0]),
        "latest": asdict(LOOKS[1]),
        "best": asdict(LOOKS[1]),
    }
    assert found["updated"] == "2026-09-21T14:13:17Z"
    assert found["eta"] == "2026-09-21T14:14:03Z"
    assert found["result"] is None
    kept.progress(stage="finished")
    result = kept.result()
    found = json.loads(json.dumps(status_facts(kept.status())))
    assert found["result"] == json.loads(json.dumps(asdict(result)))


# Hostile stores


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b"nonsense", b"[" * 100_000, b"x" * (17 << 20)]
)
def test_nonsense_is_passed_over(kept: KeptQad, data: bytes) -> None:
    for name in ("progress.json", "result.json", "refused.json"):
        kept.store.write(f"qad/{QAD}/{name}", data)
    assert kept.status() == QadStatus(kept.store.uri, QAD, "gone")
    assert [each.state for each in list_runs(kept.store, NOW)] == ["gone"]


def test_a_result_of_another_schema_is_none(kept: KeptQad) -> None:
    kept.progress(stage="finished")
    kept.result(schema="kldcloud.qad-result/2")
    assert kept.status().state == "stopped"


def test_nothing_from_the_store_steers_a_terminal(kept: KeptQad) -> None:
    evil = "\x1b]0;owned\x07\r\n\u202e" * 50
    kept.progress(stage=evil, error=evil, warning=evil)
    kept.result(verdict=(evil,) * 40, sweep=evil, export=evil, failed=evil, student=evil)
    lines = [line.text for line in status_lines(kept.status(), NOW)]
    kept.store.delete(f"qad/{QAD}/result.json")
    kept.progress(stage="failed", error=evil, warning=evil)
    lines += [line.text for line in status_lines(kept.status(), NOW)]
    lines.append(status_line(kept.status(), NOW))
    assert all(line.isprintable() for line in lines)


# What people call it


def test_it_is_found_by_its_id_a_prefix_or_as_what_was_heard_of_last(kept: KeptQad) -> None:
    uri = kept.store.uri
    kept.progress()
    sweep = KeptRun(kept.store, SWEEP)
    sweep.driver(attempt(60))
    found = find_status(QAD, uri)
    assert (found.qad, found.run, found.launch) == (QAD, "", "")
    assert find_status("small-0", uri).qad == QAD
    assert find_status("small-proof", uri).run == SWEEP
    assert find_status("latest", uri).qad == QAD
    kept.progress(seen=NOW - 100)
    assert find_status("latest", uri).run == SWEEP
    assert find_status("small", uri).qad == QAD
    KeptQad(kept.store, "small-ffff").job()
    with pytest.raises(UserError, match=f"small could be any of {QAD}, small-ffff; "):
        find_status("small", uri)
    KeptRun(kept.store, "smallest-0").driver(attempt(60))
    with pytest.raises(UserError, match=f"small could be any of {QAD}, small-ffff, smallest-0; "):
        find_status("small", uri)
    with pytest.raises(UserError, match=f"no run nope in {uri}; it has {SWEEP}"):
        find_status("nope", uri)


def test_it_is_found_by_its_job_file_whatever_does_not_decide_its_training(
    kept: KeptQad, tmp_path: Path
) -> None:
    uri = kept.store.uri
    again = KeptQad(kept.store, "small-99999")
    job = again.job(export={"path": "copy.gguf"}, checkpoints={"every": 7})
    kept.progress()
    again.progress(seen=NOW - 9000)
    path = tmp_path / "job.yaml"
    path.write_bytes(job_bytes(job))
    found = find_any(str(path), uri)
    assert isinstance(found, FoundQad)
    assert (found.run, found.store.uri) == (QAD, uri)
    again.progress()
    kept.progress(seen=NOW - 9000)
    assert find_any(str(path), uri).run == "small-99999"
    other = yaml.safe_load(path.read_bytes())
    other["train"]["seed"] = 7
    path.write_text(yaml.safe_dump(other))
    with pytest.raises(UserError, match=r"no run \S+job.yaml in .*; launch the job"):
        find_any(str(path), uri)


def test_a_store_of_sweeps_alone_is_as_it_was(tmp_path: Path) -> None:
    sweeps = KeptRun(open_store(str(tmp_path / "sweeps")))
    sweeps.driver(attempt(60))
    found = find_any("latest", sweeps.store.uri)
    assert isinstance(found, FoundRun)
    assert found.run == sweeps.run
    with pytest.raises(UserError, match="no run latest"):
        find_any("latest", str(tmp_path / "empty"))


def test_it_is_listed_beside_sweeps(kept: KeptQad) -> None:
    kept.progress()
    sweep = KeptRun(kept.store, SWEEP)
    sweep.note_plan()
    sweep.driver(attempt(60), updated=NOW - 40)
    lines = list_runs(kept.store, NOW)
    assert [(each.id, each.kind, each.state) for each in lines] == [
        (SWEEP, "run", "running"),
        (QAD, "qad", "running"),
    ]
    assert (lines[1].name, lines[1].done, lines[1].total) == ("small", 7, 10)
    heading, one, other = (line.text for line in run_lines(lines, NOW))
    assert heading.split()[3:6] == ["state", "done", "started"]
    assert "0 of 20 chunks" in one
    assert re.split("  +", other)[-3:] == ["7 of 10 steps", "10 min ago", "3 s ago"]


# On other machines


def test_a_launch_shows_the_distillation_that_it_runs(kept: KeptQad) -> None:
    rented = KeptRun(kept.store)
    rented.launch()
    rented.attempt(attempt(3600), run=QAD, state="running")
    kept.progress()
    found = StatusReader(StatusSubject(kept.store, launch=LAUNCH)).read(NOW)
    assert isinstance(found, QadStatus)
    assert (found.run, found.state) == (QAD, "running")
    assert [each.launch for each in found.launches] == [LAUNCH]
    assert kept.status() == found
    assert f"launch {LAUNCH}: 2 x AWS" in kept.shown()
    assert [each.id for each in list_runs(kept.store, NOW)] == [QAD]
    # Before training says anything, the machines do; and after they were lost, too.
    kept.store.delete(f"qad/{QAD}/progress.json")
    rented.attempt(attempt(3600), run=QAD, state="preparing", label="downloading")
    assert f"{QAD}  preparing: downloading  (last sign of life 5 s ago)" in kept.shown()
    rented.attempt(attempt(3600), run=QAD, state="out-of-time", error="max_duration")
    assert kept.shown().startswith(f"{QAD}  out-of-time: max_duration  (5 s ago)")


def test_it_has_stopped_once_its_machines_were_given_back(kept: KeptQad) -> None:
    rented = KeptRun(kept.store)
    rented.launch(down=NOW - 1)
    rented.attempt(attempt(3600), run=QAD, state="running")
    kept.progress(seen=NOW - 3)
    assert (kept.status().state, kept.status().settled) == ("stopped", True)
    # Somebody went on with it here.
    kept.progress(seen=NOW)
    assert kept.status().state == "running"


def test_a_managed_launch_brings_it_back(kept: KeptQad) -> None:
    rented = KeptRun(kept.store)
    rented.launch(managed=True)
    rented.attempt(attempt(3600), run=QAD, state="running", updated=NOW - 900)
    kept.progress(seen=NOW - 900)
    status = kept.status()
    assert (status.state, status.settled) == ("gone", False)
