"""Finding what a person asks the status of: a run, or a launch that may have no run yet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kldcloud.errors import UserError
from kldcloud.pipeline.launches import launch_of_job
from kldcloud.pipeline.runs import DEFAULT_STORE, find_run
from kldcloud.status.launch import launches_in, newest_launch
from kldcloud.status.run_files import list_run
from kldcloud.store import open_store
from kldcloud.store.base import Store


@dataclass(frozen=True, slots=True)
class StatusSubject:
    """A run, or a launch whose run is found once it is known; the other one is empty."""

    store: Store
    run: str = ""
    launch: str = ""


def find_status(name: str, store: str | None) -> StatusSubject:
    """The run or launch that a person means.

    Args:
        name: as `find_run` takes it, or a launch id or a prefix of one.
        store: as `find_run` takes it.

    Raises:
        UserError: if there is none, or several.
    """
    if name.endswith((".yaml", ".yml")):
        try:
            found = find_run(name, store)
        except UserError as error:
            launch = launch_of_job(Path(name), store)
            if launch is None or type(error) is not UserError:
                raise
            return StatusSubject(launch[1], launch=launch[0].launch)
        return StatusSubject(found.store, found.run)
    kept = open_store(store or DEFAULT_STORE)
    launches = launches_in(kept.list("launches/"))
    if name in launches:
        return StatusSubject(kept, launch=name)
    newest = newest_launch(kept, launches) if name == "latest" else None
    try:
        run = find_run(name, store).run
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
    if newest is not None and newest[0] > max(list_run(kept, run).attempts, default=""):
        return StatusSubject(kept, launch=newest[1])
    return StatusSubject(kept, run)
