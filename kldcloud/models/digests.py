"""SHA-256 of model files, remembered as long as a file is the one that was hashed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from kldcloud.errors import UserError
from kldcloud.models.cache import cache_dir
from kldcloud.store.digest import sha256_bytes, sha256_file


def model_sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """The digest of a local file.

    Hashing 70 GB takes a minute, so it is kept beside the cache with the file's size, time of
    change and inode, and believed while all three are the same.

    Raises:
        UserError: if the file cannot be read.
    """
    identity = _identity(path)
    note = _note(path)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(note.read_bytes())
        if known["identity"] == identity and len(known["sha256"]) == 64:  # noqa: PLR2004
            return str(known["sha256"])
    digest = sha256_file(path, progress)
    remember_sha256(path, digest, identity)
    return digest


def remember_sha256(path: Path, digest: str, identity: list[int] | None = None) -> None:
    """Note the digest of a file that was hashed while it came.

    Args:
        path: the file.
        digest: of its bytes.
        identity: of the file when it was hashed, if that is a while ago.
    """
    # A cache that cannot be written costs time, not correctness.
    with contextlib.suppress(OSError, UserError):
        note = _note(path)
        note.parent.mkdir(parents=True, exist_ok=True)
        facts = {"identity": identity or _identity(path), "sha256": digest}
        part = note.with_name(f"{note.name}.{os.getpid()}.part")
        part.write_text(json.dumps(facts))
        part.replace(note)


def _identity(path: Path) -> list[int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _note(path: Path) -> Path:
    return cache_dir() / "digests" / f"{sha256_bytes(str(path.resolve()).encode())[:32]}.json"
