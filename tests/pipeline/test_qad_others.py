"""A job that was changed says which run it does not go on with, and why."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from kldcloud.pipeline.qad_others import left_behind, warn_of_others
from kldcloud.store import open_store
from tests.pipeline.sweeps import Notes
from tests.status.kept_qads import QAD, KeptQad

OTHER = "small-fedcba987654"


@pytest.fixture
def kept(tmp_path: Path) -> KeptQad:
    found = KeptQad(open_store(str(tmp_path)))
    found.job()
    found.progress()
    return found


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"train": {"lr": 1e-5}}, "train.lr"),
        ({"student": {"init": {"quantize": "Q4_1"}}}, "student.init.quantize"),
        ({"eval": {"every": 7}}, "eval.every"),
        ({"data": {"text": "/texts/b.txt"}}, "data.text"),
    ],
)
def test_the_first_field_that_was_changed_is_named(
    kept: KeptQad, changes: dict[str, Any], field: str
) -> None:
    changed = KeptQad(kept.store, OTHER).job(**changes)
    assert left_behind(kept.store, OTHER, changed) == (
        f"{OTHER} begins at step 0: {QAD}, which is at step 7 of 10, is another run, as it has"
        f" another {field}"
    )


def test_where_the_job_is_the_same_something_else_is_not(kept: KeptQad) -> None:
    same = KeptQad(kept.store, OTHER).job(checkpoints={"every": 3})
    said = left_behind(kept.store, OTHER, same)
    assert said is not None
    assert said.endswith("is another run, as its files or its processes are others")
    kept.store.write(f"qad/{QAD}/job.yaml", b"{")
    assert left_behind(kept.store, OTHER, same) == said


def test_nothing_is_said_where_nothing_is_left_behind(kept: KeptQad) -> None:
    job = kept.job()
    # Of another name, begun before, not begun, and ended.
    assert left_behind(kept.store, "smaller-fedcba987654", job) is None
    assert left_behind(kept.store, QAD, job) is None
    kept.progress(step=0)
    assert left_behind(kept.store, OTHER, job) is None
    kept.progress()
    kept.result()
    assert left_behind(kept.store, OTHER, job) is None


def test_the_same_one_under_way_is_told_of(kept: KeptQad) -> None:
    job = kept.job()

    def said(launch: str = "") -> list[str]:
        notes = Notes()
        warn_of_others(kept.store, QAD, job, launch, notes)
        return notes.warnings

    assert not said(), "it was written long ago"
    kept.progress(now=time.time())
    (line,) = said()
    assert re.fullmatch(rf"another launch was at {QAD} \d+ s ago: unless it was killed, .*", line)
    assert not said("kld-small-12345678"), "the one before it was taken away"
    kept.progress(now=time.time(), stage="stopped")
    assert not said()
