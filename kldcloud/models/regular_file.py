"""Opening a file that a person, or another file, has named, and seeing what may be replaced."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import BinaryIO

from kldcloud.errors import FormatError, UserError

DOWNLOAD_AGAIN = "download it again"


def open_regular(path: Path, *, wanted: str = "give the path of one .gguf file") -> BinaryIO:
    """Open a file that has bytes in it; links are followed.

    Args:
        path: of the file.
        wanted: the hint for what is no file.

    Raises:
        UserError: there is no such file, or it cannot be opened.
        FormatError: it is empty.
    """
    try:
        status = path.stat()
        # A pipe would block in open, and neither it nor a folder can be mapped.
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: is not a file", hint=wanted)
        if status.st_size == 0:
            raise FormatError(f"{path}: is an empty file", hint=DOWNLOAD_AGAIN)
        return path.open("rb")
    except OSError as error:
        reason = error.strerror or "cannot be opened"
        raise UserError(f"{path}: {reason}", hint="check the path of the model") from error
    except ValueError:  # a NUL in the path
        raise UserError(f"{str(path)!r}: is no path", hint="check the path of the model") from None


def refuse_replacing(path: Path, *, hint: str = "give the name of a file to write") -> None:
    """See that nothing but a file, or nothing at all, is where one will be written.

    A device, a pipe or a folder is never replaced: renaming onto /dev/stdout or /dev/null would
    take it away from every other program.

    Args:
        path: of the file; links are followed.
        hint: what to do instead.

    Raises:
        UserError: something else is there.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a file", hint=hint)
