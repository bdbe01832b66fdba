"""Machines given back: a launch's, or every one of ours, and the store told that they are gone."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from kldcloud.clusters import skypilot
from kldcloud.errors import KldcloudError
from kldcloud.models.cache import cache_dir
from kldcloud.pipeline.launches import LAUNCH_FILE
from kldcloud.pipeline.life import LaunchRecord, launch_key, read_launch
from kldcloud.pipeline.progress import Progress
from kldcloud.store import open_store, store_option
from kldcloud.store.base import Store


def give_back(record: LaunchRecord, store: Store, progress: Progress) -> bool:
    """Give a launch's machines back and note it; a failure is a warning that says what to do.

    Returns:
        Whether they are gone.
    """
    try:
        skypilot.down(record.launch, managed=record.managed)
    except (KldcloudError, KeyboardInterrupt) as error:
        why = error.message if isinstance(error, KldcloudError) else "stopped"
        progress.warn(
            f"machines of {record.launch} may still be up: {why}; "
            f"kldcloud down {record.launch} {store_option(store.uri)} tries again"
        )
        if isinstance(error, KeyboardInterrupt):
            raise
        return False
    _note_down(record, store)
    return True


def give_all_back(say: Callable[[str], None], progress: Progress) -> bool:
    """Give back every machine of ours that SkyPilot knows of; one that will not go stops no other.

    Args:
        say: is told of each that went, or that there is none.
        progress: is warned of the others.

    Returns:
        Whether all are gone.

    Raises:
        KldcloudError: SkyPilot does not say which there are.
    """
    ours = [(name, partial(skypilot.down, name, managed=False)) for name in skypilot.our_clusters()]
    ours += [(job.name, partial(skypilot.cancel, job)) for job in skypilot.our_managed_jobs()]
    if not ours:
        say("no machine of ours is up")
    gone = 0
    for name, end in ours:
        try:
            end()
        except KldcloudError as error:
            progress.warn(f"{name} may still be up: {error}; the same command tries again")
            continue
        note_down(name)
        say(f"{name}: down")
        gone += 1
    return gone == len(ours)


def note_down(launch: str) -> None:
    """Note that a launch's machines are gone, where this computer knows the store that asks."""
    with contextlib.suppress(KldcloudError, OSError, ValueError, KeyError, TypeError):
        facts = json.loads((folder_of(launch) / LAUNCH_FILE).read_bytes())
        store = open_store(str(facts["store"]))
        record = read_launch(store, launch_key(launch))
        if record is not None:
            _note_down(record, store)


def _note_down(record: LaunchRecord, store: Store) -> None:
    write_record(store, replace(record, down=time.time()))
    # Nobody reads it again, and the key in it opened what SkyPilot still has of the secrets.
    shutil.rmtree(folder_of(record.launch), ignore_errors=True)


def write_record(store: Store, record: LaunchRecord) -> None:
    """Note what a launch asked for, and whether its machines are gone."""
    store.write(launch_key(record.launch), json.dumps(asdict(record)).encode())


def folder_of(launch: str) -> Path:
    """What travels to a launch's machines, on this one."""
    return cache_dir() / "launches" / launch
