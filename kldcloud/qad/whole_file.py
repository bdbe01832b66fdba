"""A file that is there once all of it is on disk and was found good, and not before."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from kldcloud.errors import StoreError


@contextlib.contextmanager
def whole_file(target: Path, check: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """Yield the path of a hidden file beside `target`, which becomes `target` when the block ends.

    Args:
        target: appears, or is replaced. Its folder is made if missing.
        check: called with the hidden file's path once the block has ended; what it raises, or what
            the block raises, leaves `target` as it was and the hidden file removed.

    Raises:
        StoreError: the folder cannot be written.
    """
    with written(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
        if check is not None:
            check(part)
        with written(target):
            part.replace(target)
            _sync(target.parent)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


@contextlib.contextmanager
def written(target: Path) -> Iterator[None]:
    """Turn what the file system refuses into one sentence about `target`.

    Raises:
        StoreError: in place of any OSError.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space, or export" if full else "check the folder, or export"
        raise StoreError(
            f"{target}: cannot be written: {error.strerror or error}", hint=f"{hint} elsewhere"
        ) from error


def _sync(folder: Path) -> None:
    """Record the new name on disk, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
