"""Where downloaded and quantised models are kept on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The cache folder: KLDCLOUD_CACHE, or ~/.cache/kldcloud."""
    return Path(os.environ.get("KLDCLOUD_CACHE") or Path.home() / ".cache" / "kldcloud")
