"""Finding what a person asks the status of: a run, or a launch that may have no run yet."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kldcloud.errors import SpecError, UserError
from kldcloud.pipeline.launches import launch_of_job
from kldcloud.pipeline.qad_runs import FoundQad, find_any, last_heard
from kldcloud.pipeline.runs import DEFAULT_STORE, FoundRun
from kldcloud.status.launch import launches_in, newest_launch
from kldcloud.status.run_files import list_run
from kldcloud.store import open_store
from kldcloud.store.base import Store


@dataclass(frozen=True, slots=True)
class StatusSubject:
    """A run, or a launch whose run is found once it is known; the others are empty.

    Attributes:
        store: where it is.
        run: a sweep's.
        launch: on other machines; of a sweep's job file, beside no run.
        qad: a distillation's.
    """

    store: Store
    run: str = ""
    launch: str = ""
    qad: str = ""


def find_status(name: str, store: str | None) -> StatusSubject:
    """The run or launch that a person means.

    Args:
        name: as `find_any` takes it, or a launch id or a prefix of one.
        store: as `find_run` takes it.

    Raises:
        UserError: if there is none, or several.
    """
    if name.endswith((".yaml", ".yml")):
        try:
            return _subject(find_any(name, store))
        except UserError as error:
            if type(error) is not UserError:
                raise
            launch = None
            with suppress(SpecError):  # the launches of a distillation cannot be told from its file
                launch = launch_of_job(Path(name), store)
            if launch is None:
                raise
            return StatusSubject(launch[1], launch=launch[0].launch)
    kept = open_store(store or DEFAULT_STORE)
    launches = launches_in(kept.list("launches/"))
    if name in launches:
        return StatusSubject(kept, launch=name)
    newest = newest_launch(kept, launches) if name == "latest" else None
    try:
        found = find_any(name, store)
    except UserError as error:
        matches = [newest[1]] if newest else [each for each in launches if each.startswith(name)]
        if not matches or type(error) is not UserError:
            raise
        if len(matches) > 1:
            raise UserError(
                f"{name} could be any of {', '.join(sorted(matches)[:5])}",
                hint="give more of the launch's id",
            ) from None
        return StatusSubject(kept, launch=matches[0])
    if newest is not None and newest[0] > _last_heard(found):
        return StatusSubject(kept, launch=newest[1])
    return _subject(found)


def _subject(found: FoundRun | FoundQad) -> StatusSubject:
    if isinstance(found, FoundQad):
        return StatusSubject(found.store, qad=found.run)
    return StatusSubject(found.store, found.run)


def _last_heard(found: FoundRun | FoundQad) -> str:
    """When that was, in digits that sort among the ids of attempts."""
    if isinstance(found, FoundQad):
        return last_heard(found.store, found.run)
    return max(list_run(found.store, found.run).attempts, default="")
