"""Where downloaded and quantised models are kept on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from kldcloud.errors import StoreError


def cache_dir() -> Path:
    """The cache folder: KLDCLOUD_CACHE, or ~/.cache/kldcloud."""
    return Path(os.environ.get("KLDCLOUD_CACHE") or Path.home() / ".cache" / "kldcloud")


def cache_folder(name: str, what: str) -> Path:
    """A folder of the cache, made if it is missing.

    Args:
        name: of the folder.
        what: is kept there, for the error.

    Raises:
        StoreError: it cannot be made.
    """
    folder = cache_dir() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{folder}: cannot keep {what} there: {error.strerror}",
            hint="set KLDCLOUD_CACHE to a folder with room",
        ) from error
    return folder
