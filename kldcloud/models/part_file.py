"""A download that survives being cut off: only a whole file ever gets the final name.

Processes that want the same file wait for the first and share what it fetched.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from kldcloud.errors import StoreError

ProgressCallback = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

# Held in memory at once; large enough that a pause between two does not show.
WINDOW_BYTES = 64 << 20


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
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Appending creates without truncating: another process may be filling the same part.
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if target.exists():
                return target
            done = os.fstat(file.fileno()).st_size
            if done > size:
                os.ftruncate(file.fileno(), 0)
                done = 0
            _check_room(target.parent, size - done)
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
    except OSError as error:
        raise StoreError(
            f"{target.parent}: cannot keep a download there: {error.strerror or error}",
            hint="set KLDCLOUD_CACHE to a folder with room",
        ) from error
    return target


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"{folder}: a download needs {needed:,} bytes and {free:,} are free",
            hint="set KLDCLOUD_CACHE to a folder with room",
        )
