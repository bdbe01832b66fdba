"""Launches that a store knows: which one a person means, and how its attempts ended."""

from __future__ import annotations

from pathlib import Path

from kldcloud.errors import UserError
from kldcloud.pipeline.launches import launch_of_job, read_launches
from kldcloud.pipeline.life import AttemptRecord, LaunchRecord, attempt_key, read_attempt
from kldcloud.store import open_store
from kldcloud.store.base import Store


def find_launch(name: str, store: str | None) -> tuple[LaunchRecord, Store]:
    """The launch that a person means, and the store that has it.

    Args:
        name: its id, a prefix of it, its run's id, a job file, or `latest`.
        store: where to look; a job file names its own.

    Raises:
        UserError: there is none, or there are several.
    """
    if name.endswith((".yaml", ".yml")):
        found_by_job = launch_of_job(Path(name), store)
        if found_by_job is None:
            raise UserError(f"{name} has not been launched on other machines")
        return found_by_job
    if store is None:
        raise UserError(
            "no store is named that has the launch",
            hint="name its job file instead, or add --store s3://bucket/prefix",
        )
    kept = open_store(store)
    records = read_launches(kept)
    if name == "latest":
        found = records[-1:]
    else:
        found = [each for each in records if each.launch == name]
        found = found or [each for each in records if each.launch.startswith(name)]
        found = found or [each for each in records if _runs(kept, each, name)]
    if len(found) > 1:
        names = ", ".join(each.launch for each in found[:5])
        raise UserError(f"{name} could be any of {names}", hint="give more of its id")
    if not found:
        names = ", ".join(each.launch for each in records[-3:]) or "none"
        raise UserError(f"no launch {name} in {kept.uri}", hint=f"it has {names}")
    return found[0], kept


def attempts_of(store: Store, launch: str) -> list[str]:
    """A launch's attempts, in order of time."""
    infos = store.list(f"launches/{launch}/attempts/")
    return sorted(info.key.rpartition("/")[2].removesuffix(".json") for info in infos)


def last_attempt(store: Store, launch: str) -> AttemptRecord | None:
    """The latest time that machines ran a launch."""
    known = attempts_of(store, launch)
    return read_attempt(store, attempt_key(launch, known[-1])) if known else None


def is_complete(store: Store, attempt: AttemptRecord | None) -> bool:
    """Whether the run of an attempt is there: then no machine is needed to say so."""
    if attempt is None or attempt.state != "finished" or not attempt.run:
        return False
    return is_whole(store, attempt.run)


def is_whole(store: Store, run: str) -> bool:
    """Whether nothing is missing from a run."""
    results = (f"runs/{run}/summary.json", f"qad/{run}/result.json")
    return any(store.size(key) is not None for key in results)


def _runs(store: Store, record: LaunchRecord, run: str) -> bool:
    attempt = last_attempt(store, record.launch)
    return attempt is not None and attempt.run != "" and attempt.run.startswith(run)
