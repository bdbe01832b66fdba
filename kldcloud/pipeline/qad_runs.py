"""Finding a distillation in a store, or whatever run it is that a person means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kldcloud.errors import KldcloudError, UserError
from kldcloud.pipeline.runs import (
    DEFAULT_STORE,
    MAX_JOB_BYTES,
    FoundRun,
    ambiguous,
    find_run,
    job_bytes,
    last_sign_of_life,
    named,
    run_ids,
)
from kldcloud.qad.progress_file import read_progress
from kldcloud.qad.result_file import QadResult, read_result
from kldcloud.spec.load import load_job
from kldcloud.spec.qad_job import QadJob
from kldcloud.store import open_store
from kldcloud.store.base import Store
from kldcloud.store.keys import is_part

_FOLDER: Final = "qad"
DECIDE: Final = ("name", "teacher", "student", "data", "train")
"""Fields of a job that its training hangs on, with the looks of `eval`."""


@dataclass(frozen=True, slots=True)
class FoundQad:
    """A distillation and the store that has it."""

    run: str
    store: Store

    @property
    def prefix(self) -> str:
        return qad_prefix(self.run)


def qad_prefix(run: str) -> str:
    return f"{_FOLDER}/{run}"


def qad_ids(store: Store) -> list[str]:
    """All distillations of a store, by name."""
    return run_ids(store, _FOLDER)


def is_qad(store: Store, run: str) -> bool:
    """Whether a run is a distillation."""
    return store.size(f"{qad_prefix(run)}/job.yaml") is not None


def find_any(name: str, store: str | None) -> FoundRun | FoundQad:
    """The run that a person means, of whichever kind.

    Args:
        name: as `find_run` takes it; `latest` is the one that was heard of last.
        store: as `find_run` takes it.

    Raises:
        UserError: if there is none, or several.
    """
    if name.endswith((".yaml", ".yml")):
        job = load_job(Path(name), [f"store={store}"] if store else [])
        return _of_job(job, name) if isinstance(job, QadJob) else find_run(name, store)
    kept = open_store(store or DEFAULT_STORE)
    found = qad_ids(kept)
    if name == "latest":
        return _latest(kept, found) if found else find_run(name, store)
    qads, sweeps = named(found, name), named(run_ids(kept), name)
    if name not in sweeps:
        # The name of a distillation begins that of the sweep which measures it, too.
        proofs = tuple(f"{each.rpartition('-')[0]}-proof-" for each in qads)
        sweeps = [each for each in sweeps if not each.startswith(proofs)]
    if name in sweeps or not qads:
        return find_run(name, store)
    matches = qads if name in qads else sorted([*qads, *sweeps])
    if len(matches) > 1:
        raise ambiguous(name, matches)
    return FoundQad(matches[0], kept)


@dataclass(frozen=True, slots=True)
class Reported:
    """What a report is about.

    Attributes:
        run: a sweep; of a distillation, the one that measured its result.
        training: that distillation; None where the sweep is of none.
    """

    run: FoundRun
    training: QadResult | None


def find_reported(name: str, store: str | None) -> Reported:
    """The sweep whose results a person wants to see, and the distillation that it measured.

    Args:
        name: as `find_any` takes it.
        store: as `find_any` takes it.

    Raises:
        UserError: if there is none, or several, or it has not got so far.
    """
    found = find_any(name, store)
    if isinstance(found, FoundRun):
        return Reported(found, _measured_by(found))
    result = read_result(found.store, found.prefix)
    if result is None or not is_part(result.sweep):
        raise UserError(
            f"run {found.run} has no result yet",
            hint="kldcloud status says whether it is at work; if not, launch its job again",
        )
    return Reported(FoundRun(result.sweep, found.store), result)


def _measured_by(sweep: FoundRun) -> QadResult | None:
    """The distillation whose student a sweep measured."""
    results = (read_result(sweep.store, qad_prefix(each)) for each in qad_ids(sweep.store))
    return next((each for each in results if each and each.sweep == sweep.run), None)


def last_heard(store: Store, run: str) -> str:
    """When a distillation last said anything, in digits that sort among those of attempts."""
    found = read_progress(store, qad_prefix(run))
    return f"{int(found.seen * 1000):013d}" if found else ""


def _latest(store: Store, qads: list[str]) -> FoundRun | FoundQad:
    last, run = max((last_heard(store, each), each) for each in qads)
    sweeps = [(last_sign_of_life(store, each), each) for each in run_ids(store)]
    if sweeps and max(sweeps)[0] > last:
        return FoundRun(max(sweeps)[1], store)
    return FoundQad(run, store)


def _of_job(job: QadJob, name: str) -> FoundQad:
    import yaml

    store = open_store(job.store)
    wanted = _what_decides(yaml.safe_load(job_bytes(job)))
    matches = [run for run in qad_ids(store) if _job_of(store, run) == wanted]
    if not matches:
        raise UserError(f"no run {name} in {store.uri}", hint="launch the job")
    return FoundQad(max(matches, key=lambda run: last_heard(store, run)), store)


def _job_of(store: Store, run: str) -> object:
    """What decides a run's training; None if its job is unreadable."""
    import yaml

    try:
        kept = yaml.safe_load(store.read(f"{qad_prefix(run)}/job.yaml", limit=MAX_JOB_BYTES))
        return _what_decides(kept)
    except (KldcloudError, yaml.YAMLError, KeyError, TypeError):
        return None


def _what_decides(job: Mapping[str, Any]) -> object:
    looks = job["eval"]
    return {name: job[name] for name in DECIDE}, looks["every"], looks["chunks"]
