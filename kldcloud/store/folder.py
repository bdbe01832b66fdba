"""A folder as a store: temporary file, fsync, link(2) to the final name."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from kldcloud.errors import FormatError, StoreError
from kldcloud.store.base import ObjectInfo, StoreProbe
from kldcloud.store.create_once import create_once
from kldcloud.store.digest import check_sha256
from kldcloud.store.keys import check_key, check_prefix, is_part
from kldcloud.store.probe import probe_store

# No key can name it: parts of keys do not begin with a dot.
_INCOMING = ".tmp"
_STALE_SECONDS = 24 * 3600
_COPY_BYTES = 8 << 20

_REASONS = {
    errno.EACCES: ("is not writable or readable for you", "check the folder's owner and mode"),
    errno.EPERM: ("is not writable or readable for you", "check the folder's owner and mode"),
    errno.EROFS: ("is on a read-only file system", "choose another folder"),
    errno.ENOSPC: ("is on a full disk", "free some space, then run the same command again"),
    errno.EDQUOT: ("is over its disk quota", "free some space, then run the same command again"),
    errno.EFBIG: ("may not hold a file so large", "raise `ulimit -f`, or choose another disk"),
    errno.ENOTDIR: ("has a file where a folder is needed", "move that file away"),
    errno.EEXIST: ("has a file where a folder is needed", "move that file away"),
    errno.EISDIR: ("has a folder where an object is needed", "move that folder away"),
    errno.EXDEV: ("spans two file systems", "keep the whole store on one"),
    errno.ENOTSUP: (
        "is on a file system that cannot create a file only once",
        "choose a local disk, NFS, or an s3:// store",
    ),
}


class FolderStore:
    """Objects as plain files under `root`.

    An object appears whole, after its bytes are on disk, or not at all: a killed writer leaves
    only a file in `.tmp/`, which is never listed and is swept after a day. Symbolic links below
    the root are refused, so that no key leads out of it.
    """

    def __init__(self, root: Path) -> None:
        """Open `root`, which the first write makes if need be.

        Raises:
            StoreError: it is a file.
        """
        # normpath drops ".." too, so that one folder has one URI.
        self._root = Path(os.path.normpath(root))
        self._incoming = self._root / _INCOMING
        self.uri = str(self._root)
        with self._explained("the folder itself"):
            if self._root.exists() and not self._root.is_dir():
                raise StoreError(f"store {self.uri} is a file", hint="name a folder")
        self._sweep()

    def read(self, key: str, *, sha256: str | None = None, limit: int | None = None) -> bytes:
        """Return the whole object; see `Store.read`."""
        with self._opened(key) as (file, size):
            if limit is not None and size > limit:
                raise FormatError(
                    f"{key} in {self.uri} has {size:,} bytes, more than the {limit:,} expected"
                )
            data = file.read()
        check_sha256(data, sha256, name=f"{key} in {self.uri}")
        return data

    def read_into(
        self, key: str, start: int, out: memoryview, *, sha256: str | None = None
    ) -> None:
        """Fill `out` from byte `start`; see `Store.read_into`."""
        view = out.cast("B")
        with self._opened(key) as (file, size):
            if start < 0 or start + len(view) > size:
                raise FormatError(
                    f"{key} in {self.uri} ends at byte {size:,},"
                    f" before the range {start:,} to {start + len(view):,}"
                )
            filled = 0
            while filled < len(view):
                count = os.preadv(file.fileno(), [view[filled:]], start + filled)
                if not count:
                    raise FormatError(f"{key} in {self.uri} shrank while it was read")
                filled += count
        check_sha256(view, sha256, name=f"bytes {start:,}+{len(view):,} of {key} in {self.uri}")

    def size(self, key: str) -> int | None:
        """Return the object's size in bytes, or None if there is no such object."""
        path = self._path(key)
        with self._explained(key):
            try:
                found = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def path(self, key: str) -> Path:
        """Return the file that an object is, for reading in place.

        Raises:
            StoreError: there is no such object.
        """
        with self._opened(key):
            return self._path(key)

    def write_new(self, key: str, data: bytes | memoryview) -> bool:
        """Create the object, or leave the one that is there; see `Store.write_new`."""
        return self._put(key, lambda file: _write_all(file, data), replace=False)

    def write_new_file(self, key: str, path: Path) -> bool:
        """As `write_new`, from a local file."""
        try:
            source = path.open("rb")
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from error
        with source:
            return self._put(
                key, lambda file: shutil.copyfileobj(source, file, _COPY_BYTES), replace=False
            )

    def write(self, key: str, data: bytes) -> None:
        """Create or replace the object."""
        self._put(key, lambda file: _write_all(file, data), replace=True)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Return the objects whose key starts with `prefix`, sorted by key."""
        folder, _, _ = check_prefix(prefix).rpartition("/")
        start = self._path(folder) if folder else self._root
        with self._explained(prefix):
            found = [
                each
                for each in self._walk(start, f"{folder}/" if folder else "")
                if each.key.startswith(prefix)
            ]
        return iter(sorted(found, key=lambda each: each.key))

    def delete(self, key: str) -> None:
        """Delete the object; nothing happens if there is none."""
        path = self._path(key)
        with self._explained(key), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()

    def probe(self) -> StoreProbe:
        """Try on throw-away keys what a run relies on, and remove them."""
        return probe_store(self)

    def check_writable(self) -> None:
        """Look, without writing, whether a first write could succeed.

        Raises:
            StoreError: it could not; a folder that does not exist is judged by the one above it.
        """
        with self._explained("before the first write"):
            place = self._root
            while not os.path.lexists(place):
                place = place.parent
            if not place.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            disk = os.statvfs(place)
            if disk.f_flag & os.ST_RDONLY:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            if not os.access(place, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            if disk.f_blocks and not disk.f_bavail:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _put(self, key: str, fill: Callable[[BinaryIO], None], *, replace: bool) -> bool:
        target = self._path(key)
        self._refuse_link(self._incoming)
        with self._explained(key):
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not replace and target.exists():
                return False
            _make_folder(target.parent)
            _make_folder(self._incoming)
            finished = self._incoming / f"{os.getpid()}-{uuid.uuid4().hex}"
            try:
                with finished.open("xb") as file:
                    fill(file)
                    file.flush()
                    os.fsync(file.fileno())
                if replace:
                    finished.replace(target)
                    created = True
                else:
                    created = create_once(finished, target)
                _sync_folder(target.parent)
            finally:
                finished.unlink(missing_ok=True)
        return created

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[tuple[BinaryIO, int]]:
        """Open a regular file for reading, with its size."""
        path = self._path(key)
        with self._explained(key):
            try:
                # Not blocking: opening a pipe that someone left here must not hang.
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise StoreError(f"no object {key} in {self.uri}") from error
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                os.close(descriptor)
                raise StoreError(f"no object {key} in {self.uri}, only a folder or device")
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                yield file, found.st_size

    def _path(self, key: str) -> Path:
        """Return the file of a key, which lies below the root with no link on the way."""
        path = self._root
        for part in check_key(key).split("/"):
            path /= part
            self._refuse_link(path)
        return path

    def _refuse_link(self, path: Path) -> None:
        with self._explained(path.name):
            is_link = path.is_symlink()
        if is_link:
            raise StoreError(
                f"{path} is a symbolic link, which could lead out of the store",
                hint="put the real file or folder in its place",
            )

    def _walk(self, folder: Path, prefix: str) -> Iterator[ObjectInfo]:
        # Whatever vanishes between two calls was deleted by someone: it is simply not listed.
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            if not is_part(entry.name):
                continue
            self._refuse_link(Path(entry.path))
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(Path(entry.path), f"{prefix}{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    yield ObjectInfo(prefix + entry.name, entry.stat().st_size)

    def _sweep(self) -> None:
        """Remove what writers that died more than a day ago left in `.tmp/`."""
        oldest = time.time() - _STALE_SECONDS
        # Housekeeping in someone's read-only or vanishing folder is no reason to fail.
        with contextlib.suppress(OSError):
            if self._incoming.is_symlink():
                return
            for entry in os.scandir(self._incoming):
                if entry.stat(follow_symlinks=False).st_mtime < oldest:
                    Path(entry.path).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        """Turn an OSError into one sentence about this store."""
        try:
            yield
        except OSError as error:
            reason, hint = _REASONS.get(error.errno or 0, (f"failed: {error.strerror}", None))
            raise StoreError(f"store {self.uri} {reason} ({key})", hint=hint) from error


def _write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    file.write(data)


def _make_folder(path: Path) -> None:
    """Make `path` and its parents, each recorded in its parent on disk."""
    if path.is_dir():
        return
    _make_folder(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir()
        _sync_folder(path.parent)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def _sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk, where its file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE mounts flush no folders, and lose nothing by it.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
