"""What was trained where a person wants it."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Final

from kldcloud.errors import StoreError, UserError
from kldcloud.models.cache import cache_dir
from kldcloud.models.part_file import complete_hashed
from kldcloud.models.regular_file import refuse_replacing
from kldcloud.models.store_copy import cached_copy
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.qad_folder import what_is_missing
from kldcloud.report.summary_shape import Summary
from kldcloud.spec.qad_job import ExportSpec
from kldcloud.store.base import Store

_IN_STORE: Final = "the store has it; copy it from there"


def check_place(export: ExportSpec) -> None:
    """See, before anything is trained, that what comes of it can go where it is wanted.

    Raises:
        UserError: something is there that it would not replace, or nobody may write there.
    """
    target, folder = export.path, export.to == "hf"
    if target is None:
        return
    if not folder:
        refuse_replacing(target, hint="give export.path the name of a file to write")
    elif target.exists() and not target.is_dir():
        raise UserError(f"{target} is not a folder", hint="give export.path another name")
    above = target.absolute() if folder else target.absolute().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        why = "cannot be written to" if above.is_dir() else "is not a folder"
        raise UserError(f"{above} {why}", hint="give export.path another name")


def copy_here(path: Path, target: Path, progress: Progress) -> None:
    """Copy a file of this machine; the target is whole, or as it was.

    Raises:
        StoreError: it cannot be written.
        UserError: what is there is no file.
    """
    refuse_replacing(target, hint=_IN_STORE)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, part)
        part.replace(target)
    except OSError as error:
        raise StoreError(f"{target}: {error.strerror}", hint=_IN_STORE) from error
    finally:
        part.unlink(missing_ok=True)
    progress.note(f"copied to {target}")


def copy_folder_from_store(store: Store, prefix: str, target: Path, progress: Progress) -> None:
    """Fetch a folder that other machines made; each file is whole, or as it was.

    Args:
        store: where it is.
        prefix: of its keys, which have no other slash.
        target: the folder here.
        progress: for bars.

    Raises:
        StoreError: it is not there, or cannot be written.
    """
    found = list(store.list(f"{prefix}/"))
    for info in found:
        path = target / info.key.removeprefix(f"{prefix}/")
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        read_into = partial(store.read_into, info.key)
        try:
            target.mkdir(parents=True, exist_ok=True)
            with progress.bar(f"fetching {path.name}", info.size) as bar:
                complete_hashed(part, info.size, read_into, bar.reach)
            part.replace(path)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}", hint=_IN_STORE) from error
        finally:
            part.unlink(missing_ok=True)
    missing = what_is_missing(info.key.rpartition("/")[2] for info in found)
    progress.note(f"copied to {target}{missing}")


def copy_from_store(
    store: Store, summary: Summary, student: str, target: Path, progress: Progress
) -> None:
    """Fetch a file that other machines made, and measured.

    Args:
        store: where it is.
        summary: of the sweep that measured it, which has its digest.
        student: its name there.
        target: where it goes.
        progress: for a bar.

    Raises:
        StoreError: it is not there, or cannot be written.
    """
    found = next((each for each in summary.candidates if each.name == student), None)
    if found is None or found.sha256 is None or found.bytes is None:
        raise StoreError(f"run {summary.run} does not say which file {student} is")
    with progress.bar(f"fetching {student}", found.bytes) as bar:
        path = cached_copy(store, found.sha256, found.bytes, cache=cache_dir(), progress=bar.reach)
    copy_here(path, target, progress)
