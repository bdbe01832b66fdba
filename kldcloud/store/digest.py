"""Digests of bytes and of files, and the check against one that was promised."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

from kldcloud.errors import FormatError, UserError

_BUFFER = 4 << 20


class DigestError(FormatError):
    """Bytes that differ from those that were promised: damaged where they lie, or on their way."""


def sha256_bytes(data: bytes | bytearray | memoryview) -> str:
    """Return the SHA-256 of `data` as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def md5_header(data: bytes) -> str:
    """Return the MD5 of `data` as the header Content-MD5 wants it: against accidents only."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def sha256_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of a file as 64 lower-case hex digits.

    Args:
        path: a local file of any size; it is read in pieces of 4 MiB.
        progress: called after each piece with the number of bytes just hashed.

    Raises:
        UserError: the file cannot be read.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_BUFFER))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                if progress is not None:
                    progress(count)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()


def check_sha256(data: bytes | memoryview, expected: str | None, *, name: str) -> None:
    """Compare `data` with its promised digest, if there is one.

    Raises:
        DigestError: they differ; the message names `name`.
    """
    if expected is None:
        return
    found = sha256_bytes(data)
    if found != expected.lower():
        raise DigestError(
            f"{name} has SHA-256 {found[:16]}..., not {expected[:16]}... as promised",
            hint="it was changed or damaged: delete it and run the same command again",
        )
