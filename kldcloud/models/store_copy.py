"""Models and texts that travel through the store by digest, and the checked copies of them here.

A copy in the cache has the name of its object, `models/<sha256>`. Beside it lie:

    <sha256>.lock             locked by whichever process of this machine fetches the copy
    <sha256>.<machine>.part   what it has so far, and the next process goes on with
    <sha256>.json             size, time of change and inode that the copy had when it was checked

A home folder may be shared by machines whose locks do not reach each other. So no two of them
write one part, and a copy gets its name by link(2), which one of them wins.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import re
import stat
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kldcloud.errors import FormatError, StoreError, UserError
from kldcloud.models.digests import model_sha256
from kldcloud.models.part_file import (
    ProgressCallback,
    complete_hashed,
    hash_open,
    kept_in,
    locked,
    machine_name,
    sweep_parts,
)
from kldcloud.store.base import Store
from kldcloud.store.create_once import create_once
from kldcloud.store.digest import DigestError

_MAX_BYTES = 16 << 40
"""More than any model has."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_UPLOAD_AGAIN = "delete that object and launch the job again on the machine that has the file"

Identity = list[int]
"""Size in bytes, time of change in nanoseconds, inode."""


def upload_once(
    store: Store, path: Path, sha256: str, progress: ProgressCallback | None = None
) -> str:
    """Put a local file into the store, unless it is there.

    Args:
        store: where to.
        path: a file that is not empty.
        sha256: its digest, which names the object.
        progress: called before the upload and after it, with bytes done and in all.

    Returns:
        The object's key, `models/<sha256>`.

    Raises:
        UserError: the file cannot be read, is empty, or is not the one that has this digest.
        FormatError: what is not a digest; an object of that key with another size.
        StoreError: the store failed.
    """
    key = object_key(sha256)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if size == 0:
        raise UserError(f"{path} is empty")
    if not _is_there(store, key, size):
        # Wrong bytes under a key that nothing ever replaces would be refused by every node.
        _check_source(path, sha256)
        if progress:
            progress(0, size)
        if store.write_new_file(key, path):
            try:
                _check_source(path, sha256)
            except UserError:
                store.delete(key)
                raise
        else:
            _is_there(store, key, size)
    if progress:
        progress(size, size)
    return key


def cached_copy(
    store: Store,
    sha256: str,
    size: int,
    *,
    cache: Path,
    progress: ProgressCallback | None = None,
) -> Path:
    """Return a checked local copy of `models/<sha256>`; one download serves the whole machine.

    Any number of processes and threads may ask at once: one fetches, the others wait for it and
    see how far it is. A copy that has changed since it was checked is hashed again, and replaced
    if it is damaged.

    Args:
        store: where the object is.
        sha256: the digest of the bytes, 64 lower-case hex digits.
        size: how many bytes.
        cache: the folder below which the copy is kept.
        progress: called with bytes done and in all, whenever there are more.

    Raises:
        FormatError: what is not a digest or a size; an object with other bytes than it should.
        StoreError: no such object, no room, or the store or the cache failed. What has been
            fetched stays, and the next call goes on from there.
    """
    key = object_key(sha256)
    return cached_object(store, key, sha256, size, folder=cache / "models", progress=progress)


def cached_object(
    store: Store,
    key: str,
    sha256: str,
    size: int,
    *,
    folder: Path,
    progress: ProgressCallback | None = None,
) -> Path:
    """As `cached_copy`, of an object under another key.

    Args:
        store: where the object is.
        key: of the object.
        sha256: the digest of the bytes, which names the copy.
        size: how many bytes.
        folder: where the copy is kept.
        progress: called with bytes done and in all, whenever there are more.

    Raises:
        FormatError: as `cached_copy`.
        StoreError: as `cached_copy`.
    """
    check_digest(sha256)
    if not 0 < size <= _MAX_BYTES:
        raise FormatError(f"{key} cannot have {size} bytes")
    copy = _Copy(store, key, sha256, size, folder / sha256, progress or _silent)
    if not copy.is_remembered():
        copy.make()
    return copy.target


@dataclass(frozen=True, slots=True)
class _Copy:
    """One object, and the file that is to be its copy."""

    store: Store
    key: str
    sha256: str
    size: int
    target: Path
    progress: ProgressCallback

    def is_remembered(self) -> bool:
        """Say whether the copy is the file that was checked before."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(self._beside("json").read_bytes())["identity"]
            return bool(known == _identity(self.target) and known[0] == self.size)
        return False

    def make(self) -> None:
        """Check the copy that is there, or fetch it, unless another process does meanwhile."""
        with kept_in(self.target.parent):
            shared = self._beside(f"{machine_name()}.part")
            with locked(self._beside("lock"), self._watch(shared)) as alone:
                if self._is_right():
                    return
                if alone:
                    self._fetch(shared)
                    return
                # Nobody can tell whether another process of this machine is at it, too.
                own = self._beside(f"{uuid.uuid4().hex}.part")
                try:
                    self._fetch(own)
                finally:
                    own.unlink(missing_ok=True)

    def _beside(self, suffix: str) -> Path:
        return self.target.with_name(f"{self.sha256}.{suffix}")

    def _watch(self, part: Path) -> Callable[[], None]:
        """Return what tells, while another process fetches, how far that one is."""
        last = 0

        def look() -> None:
            nonlocal last
            with contextlib.suppress(OSError):
                done = min(part.stat().st_size, self.size)
                # Only what moves is a sign of life.
                if done > last:
                    last = done
                    self.progress(done, self.size)

        return look

    def _is_right(self) -> bool:
        """Say whether the right copy is there; a wrong one is removed."""
        if self.is_remembered():
            return True
        found = _identity(self.target)
        if found is None:
            return False
        if found[0] == self.size:
            with self.target.open("rb", buffering=0) as file:
                digest = hash_open(file, self.size, self.progress)
            if digest.hexdigest() == self.sha256:
                self._remember(found)
                return True
        # Another machine may have put a right one in its place while this one was hashed.
        if _identity(self.target) == found:
            self.target.unlink(missing_ok=True)
        return False

    def _remember(self, identity: Identity | None) -> None:
        # A note that cannot be written, or is cut off, costs time and not correctness.
        with contextlib.suppress(OSError):
            self._beside("json").write_text(json.dumps({"identity": identity}))

    def _fetch(self, part: Path) -> None:
        if not _is_there(self.store, self.key, self.size):
            raise StoreError(
                f"no object {self.key} in {self.store.uri}",
                hint="launch the job again on the machine that has the file",
            )
        sweep_parts(part)
        read_into = functools.partial(self.store.read_into, self.key)
        try:
            done = complete_hashed(part, self.size, read_into, self.progress)
            if done.resumed and done.sha256 != self.sha256:
                # The first bytes may not have outlived a crash: they do not speak for the object.
                part.unlink(missing_ok=True)
                done = complete_hashed(part, self.size, read_into, self.progress)
        except OSError as error:
            if error.errno in _FULL:
                # All that runs here needs the disk more than the next try needs a start.
                part.unlink(missing_ok=True)
            raise
        if done.sha256 != self.sha256:
            part.unlink(missing_ok=True)
            raise DigestError(
                f"{self.key} in {self.store.uri} has SHA-256 {done.sha256[:16]}...,"
                f" not {self.sha256[:16]}...",
                hint=f"run the same command again; if that does not help, {_UPLOAD_AGAIN}",
            )
        checked = _identity(part)
        self._give_name(part)
        self._remember(checked)

    def _give_name(self, part: Path) -> None:
        """Make the checked part the copy, unless another machine has just made the same one."""
        try:
            created = create_once(part, self.target)
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
            created = False
        # A file that processes of another machine have mapped is left alone if it is right.
        if not created and not self._is_right():
            part.replace(self.target)
        part.unlink(missing_ok=True)


def object_key(sha256: str) -> str:
    """The key of the object that has these bytes.

    Raises:
        FormatError: what is not a digest.
    """
    check_digest(sha256)
    return f"models/{sha256}"


def check_digest(sha256: str) -> None:
    """Refuse what no file's name should be made of.

    Raises:
        FormatError: what is not a digest.
    """
    if not _SHA256.fullmatch(sha256):
        raise FormatError(f"{sha256[:80]!r} is no SHA-256: that is 64 digits of 0-9 and a-f")


def _is_there(store: Store, key: str, size: int) -> bool:
    found = store.size(key)
    if found is not None and found != size:
        raise FormatError(
            f"{key} in {store.uri} has {found:,} bytes, not {size:,}", hint=_UPLOAD_AGAIN
        )
    return found is not None


def _check_source(path: Path, sha256: str) -> None:
    if model_sha256(path) != sha256:
        raise UserError(f"{path} has just been changed", hint="run the same command again")


def _identity(path: Path) -> Identity | None:
    """What tells one state of a file from another; None if there is no such file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def _silent(_done: int, _total: int) -> None:
    """Tell nobody."""
