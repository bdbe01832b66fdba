"""The folder for Ray's own files, and a keeper that clears up after a run that was killed.

When a driver is killed, its workers end within seconds, but Ray's agents go on for a minute and
the folder for ever. The keeper is a small process that waits for the driver's end of a pipe to
close, which the kernel does however the driver ends.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "kld-"  # short: Ray's sockets below it have names of 107 bytes at most
_PATIENCE_SECONDS = 10.0


@contextlib.contextmanager
def ray_folder() -> Iterator[str]:
    """A temporary folder, gone after the block; after a kill the keeper ends Ray and removes it."""
    # Named before it is made: a Ctrl-C may come between that and any next step.
    folder = Path(tempfile.gettempdir()) / f"{_PREFIX}{secrets.token_hex(4)}"
    try:
        folder.mkdir(mode=0o700)
        keeper = subprocess.Popen(  # noqa: S603 - our own module, arguments as a list
            [sys.executable, "-m", __name__, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C and a kill of the group are for the driver
        )
        try:
            yield str(folder)
        finally:
            keeper.kill()
            keeper.communicate()
    finally:
        _clear_up(folder)


def _clear_up(folder: Path) -> None:
    """Remove the folder, and end whoever would make it again: what Ray was just starting."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (left := _who_logs_to(folder)) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def _who_logs_to(folder: Path) -> list[int]:
    """Other processes that have a file in the folder open for writing: Ray's, and nobody else's."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        with contextlib.suppress(OSError):
            if any(_writes_below(folder, each) for each in (process / "fd").iterdir()):
                found.append(int(process.name))
    return found


def _writes_below(folder: Path, descriptor: Path) -> bool:
    try:
        # A descriptor's link may be written if its file was opened for that.
        opened_to_write = descriptor.lstat().st_mode & stat.S_IWUSR
        return bool(opened_to_write) and descriptor.readlink().is_relative_to(folder)
    except OSError:  # closed meanwhile
        return False


if __name__ == "__main__":
    sys.stdin.buffer.read()
    _clear_up(Path(sys.argv[1]))
