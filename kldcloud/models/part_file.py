"""A download that survives being cut off: only a whole file ever gets the final name.

Processes that want the same file wait for the first and share what it fetched.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from kldcloud.errors import StoreError
from kldcloud.store.digest import sha256_bytes

if TYPE_CHECKING:
    from hashlib import _Hash

ProgressCallback = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

ReadInto = Callable[[int, memoryview], None]
"""Fills a buffer with the bytes of the source from a place on."""

# Held in memory at once (two of them where one is hashed while the next arrives); large enough
# that a pause between two does not show.
WINDOW_BYTES = 64 << 20

_PIECE_BYTES = 4 << 20
_POLL_SECONDS = 0.2
_STALE_SECONDS = 24 * 3600
_ELSEWHERE = "set KLDCLOUD_CACHE to a folder with room"


def complete_part(
    target: Path,
    size: int,
    read: Callable[[int, int], bytes | bytearray],
    progress: ProgressCallback | None = None,
) -> Path:
    """Return `target`, after fetching whatever of it is not here yet.

    Args:
        target: the final path. It must name the content, not the source: a file that is there is
            taken as whole and current, and a part of one is gone on with.
        size: bytes in the whole file.
        read: (start, count) -> exactly those bytes of the source.
        progress: told at once where the download starts from, then after every window.

    Raises:
        StoreError: no room, or the folder cannot be written. What `read` raises passes through;
            the part stays for the next try.
    """
    if target.exists():
        return target
    part = target.with_name(f"{target.name}.part")
    # Appending creates without truncating: another process may be filling the same part.
    with kept_in(target.parent), part.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if target.exists():
            return target
        done = os.fstat(file.fileno()).st_size
        if done > size:
            os.ftruncate(file.fileno(), 0)
            done = 0
        check_room(target.parent, size - done)
        while True:
            if progress:
                progress(done, size)
            if done == size:
                break
            count = min(WINDOW_BYTES, size - done)
            file.write(read(done, count))
            file.flush()
            done += count
        os.fsync(file.fileno())
        part.replace(target)
    return target


@dataclass(frozen=True, slots=True)
class HashedPart:
    """A part that has all its bytes, which nobody has compared with anything yet.

    Attributes:
        sha256: of all of it.
        resumed: whether some of it was there before.
    """

    sha256: str
    resumed: bool


def complete_hashed(
    part: Path, size: int, read_into: ReadInto, progress: ProgressCallback
) -> HashedPart:
    """Fetch what `part` lacks, and hash all of it on the way.

    Args:
        part: in a folder that is there; nobody else may write it meanwhile.
        size: bytes in the whole file.
        read_into: fetches.
        progress: told of what was there as it is hashed, then of every window.

    Raises:
        StoreError: no room. What `read_into` raises passes through; the part stays.
        OSError: the part cannot be written.
    """
    with part.open("ab+", buffering=0) as file:
        done = os.fstat(file.fileno()).st_size
        if done > size:
            file.truncate(0)
            done = 0
        check_room(part.parent, size - done)
        file.seek(0)
        digest = hash_open(file, size, progress)
        if done < size:
            _append(file, digest, done, size, read_into, progress)
        os.fsync(file.fileno())
    return HashedPart(digest.hexdigest(), done > 0)


def hash_open(file: BinaryIO, size: int, progress: ProgressCallback) -> _Hash:
    """Hash the rest of an open file; `progress` hears of it as of a download of `size` bytes."""
    digest, done = hashlib.sha256(), 0
    progress(0, size)
    while piece := file.read(_PIECE_BYTES):
        digest.update(piece)
        done += len(piece)
        progress(done, size)
    return digest


def _append(
    file: BinaryIO,
    digest: _Hash,
    done: int,
    size: int,
    read_into: ReadInto,
    progress: ProgressCallback,
) -> None:
    """Fetch bytes `done` to `size`; a window is hashed and written while the next arrives."""
    length = min(WINDOW_BYTES, size - done)
    windows = [memoryview(bytearray(length)) for _ in range(2)]

    def keep(window: memoryview) -> None:
        digest.update(window)
        while window:
            window = window[file.write(window) :]

    with ThreadPoolExecutor(1, thread_name_prefix="part") as pool:
        kept = pool.submit(keep, windows[1][:0])
        for start in range(done, size, length):
            window = windows[0][: size - start]
            read_into(start, window)
            kept.result()
            progress(start, size)
            kept = pool.submit(keep, window)
            windows.reverse()
        kept.result()
    progress(size, size)


def one_of_many(
    done: int, total: int, progress: ProgressCallback | None
) -> ProgressCallback | None:
    """Return what reports the progress of one file as that of several together.

    Args:
        done: bytes of the files before it.
        total: bytes of all.
        progress: told; None for nobody.
    """
    return progress and (lambda now, _size: progress(done + now, total))


@contextlib.contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Make the folder, and turn what its file system refuses into one sentence.

    Raises:
        StoreError: the folder or a file in it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise StoreError(
            f"{folder}: cannot keep a download there: {error.strerror or error}", hint=_ELSEWHERE
        ) from error


def check_room(folder: Path, needed: int) -> None:
    """Refuse a download before it starts if the disk has no room for the rest of it.

    Raises:
        StoreError: fewer than `needed` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"{folder}: a download needs {needed:,} bytes and {free:,} are free", hint=_ELSEWHERE
        )


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[bool]:
    """Wait for the lock; a process that is killed gives it up.

    Yields:
        True while it is held; False where the file system has no locks.
    """
    with path.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                time.sleep(_POLL_SECONDS)
            except OSError:
                held = False
                break
            else:
                held = True
                break
        yield held


def sweep_parts(own: Path) -> None:
    """Remove the parts that nobody has gone on with for a day, whosever they are."""
    oldest = time.time() - _STALE_SECONDS
    for part in own.parent.glob("*.part"):
        with contextlib.suppress(OSError):
            if part != own and part.stat().st_mtime < oldest:
                part.unlink()


@functools.cache
def machine_name() -> str:
    """A name for what a lock surely reaches: the processes of one running kernel."""
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        name = socket.gethostname()  # macOS has no such file
    return sha256_bytes(name.encode())[:12]
