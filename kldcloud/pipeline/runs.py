"""Finding a run in a store, and what it left there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kldcloud.errors import KldcloudError, UserError
from kldcloud.report.profile_file import MAX_PROFILE_BYTES, parse_profiles
from kldcloud.report.profile_shape import Profiles
from kldcloud.report.summary_file import MAX_SUMMARY_BYTES, Summary, parse_summary
from kldcloud.report.worst_file import MAX_WORST_BYTES, parse_worst
from kldcloud.report.worst_shape import WorstOfRun
from kldcloud.spec.load import load_sweep
from kldcloud.store import open_store
from kldcloud.store.base import Store

DEFAULT_STORE = "./kldcloud-store"
MAX_JOB_BYTES = 16 << 20
NO_PART_OF_A_RUN = ("cluster", "store", "shard_chunks", "rates", "expect")
"""Fields of a job that change no number, so that runs which differ in them are one."""
MEANT_BEFORE = (("format", "text"), ("noise_floor", False), ("stop", None), ("imatrix", None))
"""Fields that jobs once had not, at what they have always meant: the job is the same."""


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run and the store that has it."""

    run: str
    store: Store

    @property
    def prefix(self) -> str:
        return f"runs/{self.run}"


def find_run(name: str, store: str | None) -> FoundRun:
    """The run that a person means.

    Args:
        name: a run id, a prefix of one, a job file, or `latest`.
        store: where to look; None for the job file's store, or the default folder.

    Raises:
        UserError: if there is none, or several.
    """
    digest = None
    if name.endswith((".yaml", ".yml")):
        job = load_sweep(Path(name), [f"store={store}"] if store else [])
        store, digest = job.store, job_bytes(job)
    kept = open_store(store or DEFAULT_STORE)
    runs = run_ids(kept)
    if digest is not None:
        runs = [run for run in runs if _same_job(kept, run, digest)]
        matches = sorted(runs, key=lambda run: last_sign_of_life(kept, run))[-1:]
    elif name == "latest":
        matches = sorted(runs, key=lambda run: last_sign_of_life(kept, run))[-1:]
    else:
        matches = named(runs, name)
    if len(matches) > 1:
        raise ambiguous(name, matches)
    if not matches:
        known = f"it has {', '.join(runs[-3:])}" if runs and digest is None else "launch the job"
        raise UserError(f"no run {name} in {kept.uri}", hint=known)
    return FoundRun(matches[0], kept)


def run_ids(store: Store, folder: str = "runs") -> list[str]:
    """All runs of a kind in a store, by name."""
    parts = (info.key.split("/") for info in store.list(f"{folder}/"))
    return sorted({each[1] for each in parts})


def named(runs: Sequence[str], name: str) -> list[str]:
    """The run of that name, or those whose ids begin so."""
    return [name] if name in runs else [run for run in runs if run.startswith(name)]


def ambiguous(name: str, matches: Sequence[str]) -> UserError:
    return UserError(
        f"{name} could be any of {', '.join(matches[:5])}", hint="give more of the run's id"
    )


def read_summary(found: FoundRun) -> Summary:
    """A run's summary; of what is there, if some candidates failed.

    Raises:
        UserError: if the run has not got so far.
    """
    for name in ("summary.json", "summary-partial.json"):
        key = f"{found.prefix}/{name}"
        if found.store.size(key) is not None:
            return parse_summary(found.store.read(key, limit=MAX_SUMMARY_BYTES))
    raise UserError(f"run {found.run} has no results yet", hint="launch its job again to finish it")


def read_profiles(found: FoundRun) -> Profiles | None:
    """Where a run's divergences lie; None for a run of an earlier kldcloud, which did not say."""
    key = f"{found.prefix}/profile.json"
    if found.store.size(key) is None:
        return None
    return parse_profiles(found.store.read(key, limit=MAX_PROFILE_BYTES))


def read_worst(found: FoundRun) -> WorstOfRun | None:
    """A run's worst positions; None for a run of an earlier kldcloud, which did not say."""
    key = f"{found.prefix}/worst.json"
    if found.store.size(key) is None:
        return None
    return parse_worst(found.store.read(key, limit=MAX_WORST_BYTES))


def job_bytes(job: object) -> bytes:
    """A job as the store keeps it: YAML, every default spelt out."""
    import yaml
    from pydantic import BaseModel

    if not isinstance(job, BaseModel):
        raise UserError("not a job")
    text = yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text.encode()


def _same_job(store: Store, run: str, wanted: bytes) -> bool:
    """Whether a run was launched from this job, wherever it ran and however it was cut."""
    import yaml

    try:
        kept = store.read(f"runs/{run}/job.yaml", limit=MAX_JOB_BYTES)
        return what_counts(yaml.safe_load(kept)) == what_counts(yaml.safe_load(wanted))
    except (KldcloudError, yaml.YAMLError):
        return False


def what_counts(job: object) -> object:
    """A job's content without what moves no number."""
    if isinstance(job, list):
        return [what_counts(each) for each in job]
    if not isinstance(job, dict):
        return job
    return {
        key: what_counts(each)
        for key, each in job.items()
        if key not in NO_PART_OF_A_RUN and (key, each) not in MEANT_BEFORE
    }


def last_sign_of_life(store: Store, run: str) -> str:
    """The newest attempt of a run; empty without one."""
    return max((info.key.split("/")[3] for info in store.list(f"runs/{run}/life/")), default="")
