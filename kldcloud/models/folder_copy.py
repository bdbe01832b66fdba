"""Model folders that travel through the store, and the checked copies of them here.

Each file is an object `models/<sha256>` like any other, and so is the manifest that names them,
which comes last into the store: where it is, all of them are. In the cache the files lie under
their digests, checked and shared as `store_copy` does it, and beside them

    folders/<sha256 of the manifest>/<name>   a link to ../../models/<sha256 of the file>

A link is put in place by rename, so a kill leaves none that is half made, and any number of
processes may put the same ones there at once.
"""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path

from kldcloud.errors import FormatError, StoreError, UserError
from kldcloud.models.folder_digest import (
    MAX_MANIFEST_BYTES,
    FolderManifest,
    folder_manifest,
    parse_manifest,
)
from kldcloud.models.part_file import ProgressCallback, kept_in, one_of_many
from kldcloud.models.store_copy import cached_copy, object_key, upload_once
from kldcloud.store.base import Store
from kldcloud.store.digest import sha256_bytes

_EMPTY = sha256_bytes(b"")


def upload_folder_once(
    store: Store, folder: Path, sha256: str, progress: ProgressCallback | None = None
) -> str:
    """Put a model folder into the store, unless it is there.

    Args:
        store: where to.
        folder: as `model_folder.read_model_folder` takes it.
        sha256: its digest, which names the manifest.
        progress: called before and after each file, with bytes done and in all.

    Returns:
        The manifest's key, `models/<sha256>`.

    Raises:
        UserError: a file cannot be read, or the folder is not the one that has this digest.
        FormatError: what is not a digest; an object of a file's key with another size.
        StoreError: the store failed.
    """
    manifest = folder_manifest(folder)
    if manifest.sha256 != sha256:
        raise UserError(f"{folder} has just been changed", hint="run the same command again")
    done = 0
    for file in manifest.files:
        if file.size:
            upload_once(
                store, folder / file.name, file.sha256, one_of_many(done, manifest.size, progress)
            )
        done += file.size
    key = object_key(sha256)
    if not store.write_new(key, manifest.dump()):
        store.read(key, sha256=sha256, limit=MAX_MANIFEST_BYTES)
    return key


def fetch_folder(
    store: Store, sha256: str, *, cache: Path, progress: ProgressCallback | None = None
) -> Path:
    """Return a checked local copy of a folder; one download serves the whole machine.

    Any number of processes and threads may ask at once, as for `store_copy.cached_copy`. A file
    that has changed since it was checked is hashed again, and replaced if it is damaged.

    Args:
        store: where the folder is.
        sha256: its digest, 64 lower-case hex digits.
        cache: the folder below which the copy is kept.
        progress: called with bytes done and in all, whenever there are more.

    Raises:
        FormatError: what is not a digest, or not that of a folder; an object with other bytes
            than it should.
        StoreError: no such object, no room, or the store or the cache failed. What has been
            fetched stays, and the next call goes on from there.
    """
    manifest = _manifest(store, sha256, cache)
    folder = cache / "folders" / sha256
    done = 0
    for file in manifest.files:
        if file.size:
            told = one_of_many(done, manifest.size, progress)
            cached_copy(store, file.sha256, file.size, cache=cache, progress=told)
        elif file.sha256 == _EMPTY:
            _keep_empty(cache)
        else:
            raise FormatError(f"models/{sha256} in {store.uri} gives an empty file a digest")
        done += file.size
    with kept_in(folder):
        for file in manifest.files:
            _link(folder / file.name, Path("..", "..", "models", file.sha256))
    return folder


def _manifest(store: Store, sha256: str, cache: Path) -> FolderManifest:
    key = object_key(sha256)
    name = f"{key} in {store.uri}"
    with contextlib.suppress(OSError):
        copy = cache / key
        if copy.stat().st_size <= MAX_MANIFEST_BYTES:
            data = copy.read_bytes()
            if sha256_bytes(data) == sha256:
                return parse_manifest(data, name)
    size = store.size(key)
    if size is None:
        raise StoreError(
            f"no object {name}", hint="launch the job again on the machine that has the folder"
        )
    if size > MAX_MANIFEST_BYTES:
        raise FormatError(f"{name} is not the manifest of a model folder")
    data = cached_copy(store, sha256, size, cache=cache).read_bytes()
    return parse_manifest(data, name)


def _keep_empty(cache: Path) -> None:
    with kept_in(cache / "models"):
        (cache / "models" / _EMPTY).touch()


def _link(path: Path, target: Path) -> None:
    if path.is_symlink() and path.readlink() == target:
        return
    own = path.with_name(f".{uuid.uuid4().hex}")
    own.symlink_to(target)
    try:
        own.replace(path)
    finally:
        own.unlink(missing_ok=True)
