"""Giving a finished file its final name, only if that name is free."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

# What link(2) says on a file system without hard links: FAT, many FUSE and network mounts.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1  # linux/fs.h
_RENAME_EXCL = 4  # sys/stdio.h on macOS


def create_once(finished: Path, target: Path) -> bool:
    """Make `target` name the file that is now `finished`, atomically, unless it is taken.

    link(2) refuses a name that exists, which rename(2) does not; where there are no hard links,
    the kernel's rename-without-replacement does the same.

    Returns:
        True if `target` is now this file, False if something was there. `finished` may remain.

    Raises:
        OSError: neither way works here (ENOTSUP), or the file system failed.
    """
    try:
        os.link(finished, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return rename_once(finished, target)
    return True


def rename_once(finished: Path, target: Path) -> bool:
    """As `create_once`, without hard links: `finished` is gone if this returns True."""
    libc = ctypes.CDLL(None, use_errno=True)
    source, destination = os.fsencode(finished), os.fsencode(target)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(source, destination, _RENAME_EXCL)
    elif hasattr(libc, "renameat2"):
        failed = libc.renameat2(_AT_FDCWD, source, _AT_FDCWD, destination, _RENAME_NOREPLACE)
    else:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), str(target))
    if not failed:
        return True
    code = ctypes.get_errno()
    if code == errno.EEXIST:
        return False
    # EINVAL and ENOSYS: this file system or kernel knows no such rename.
    code = errno.ENOTSUP if code in (errno.EINVAL, errno.ENOSYS) else code
    raise OSError(code, os.strerror(code), str(target))
