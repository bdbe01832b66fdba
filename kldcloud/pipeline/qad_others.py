"""Distillations that a launch should know of: the same under way, or one that it leaves behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from kldcloud.errors import KldcloudError
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.qad_runs import DECIDE, qad_ids, qad_prefix
from kldcloud.pipeline.runs import MAX_JOB_BYTES, job_bytes
from kldcloud.pipeline.side_by_side import warn_of_another
from kldcloud.qad.progress_file import WORKING, TrainingProgress, read_progress
from kldcloud.qad.result_file import read_result
from kldcloud.spec.qad_job import QadJob
from kldcloud.store.base import Store

_LOOKS = ("every", "chunks")


def warn_of_others(store: Store, run: str, job: QadJob, launch: str, progress: Progress) -> None:
    """Say what a person may not have meant.

    Args:
        store: where they are.
        run: the one that is about to begin, or to go on.
        job: what it does.
        launch: on other machines, that runs it, one process at a time; empty on this machine.
        progress: told.
    """
    if other := left_behind(store, run, job):
        progress.warn(other)
    found = read_progress(store, qad_prefix(run))
    if found and found.stage in WORKING and not launch:
        warn_of_another(run, "", found.seen, progress)


def left_behind(store: Store, run: str, job: QadJob) -> str | None:
    """One line about the newest run that a person may have meant to go on with.

    Args:
        store: where they are.
        run: the one that is about to begin.
        job: what it does.

    Returns:
        None if this one was begun before, or there is no other.
    """
    if read_progress(store, qad_prefix(run)) is not None:
        return None
    found = dict(_unfinished(store, run))
    if not found:
        return None
    other = max(found, key=lambda each: found[each].seen)
    changed = _first_change(_kept_job(store, other), yaml.safe_load(job_bytes(job)))
    why = f"it has another {changed}" if changed else "its files or its processes are others"
    step = f"step {found[other].step:,} of {found[other].steps:,}"
    return f"{run} begins at step 0: {other}, which is at {step}, is another run, as {why}"


def _unfinished(store: Store, run: str) -> Iterator[tuple[str, TrainingProgress]]:
    name = run.rpartition("-")[0]
    for each in qad_ids(store):
        if each == run or each.rpartition("-")[0] != name:
            continue
        progress = read_progress(store, qad_prefix(each))
        if progress is not None and progress.step and read_result(store, qad_prefix(each)) is None:
            yield each, progress


def _kept_job(store: Store, run: str) -> Mapping[str, Any]:
    try:
        kept = yaml.safe_load(store.read(f"{qad_prefix(run)}/job.yaml", limit=MAX_JOB_BYTES))
    except (KldcloudError, yaml.YAMLError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _first_change(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first field that decides a training and is not the same in two jobs."""
    if not one:
        return None
    before, after = dict(_fields(one)), dict(_fields(other))
    return next((each for each in after if before.get(each) != after[each]), None)


def _fields(job: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    for part in DECIDE:
        yield from _flat(part, job.get(part))
    looks = job.get("eval")
    for name in _LOOKS:
        yield f"eval.{name}", looks.get(name) if isinstance(looks, dict) else None


def _flat(at: str, value: object) -> Iterator[tuple[str, object]]:
    if not isinstance(value, dict):
        yield at, value
        return
    for name, each in value.items():
        yield from _flat(f"{at}.{name}", each)
