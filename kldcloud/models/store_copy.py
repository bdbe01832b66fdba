"""Models and texts that travel through the store, by digest."""

from __future__ import annotations

from pathlib import Path

from kldcloud.errors import FormatError
from kldcloud.models.part_file import ProgressCallback, complete_part
from kldcloud.store.base import Store
from kldcloud.store.digest import sha256_file


def upload_once(
    store: Store, path: Path, sha256: str, progress: ProgressCallback | None = None
) -> str:
    key = f"models/{sha256}"
    del progress
    if store.size(key) is None:
        store.write_new_file(key, path)
    return key


def cached_copy(
    store: Store,
    sha256: str,
    size: int,
    *,
    cache: Path,
    progress: ProgressCallback | None = None,
) -> Path:
    target = cache / "models" / sha256

    def read(start: int, count: int) -> bytearray:
        window = bytearray(count)
        store.read_into(f"models/{sha256}", start, memoryview(window))
        return window

    complete_part(target, size, read, progress)
    if sha256_file(target) != sha256:
        target.unlink()
        raise FormatError(f"models/{sha256} has other bytes than its name says")
    return target
