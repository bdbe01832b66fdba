"""The stores that one suite of promises runs against."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kldcloud.store import Store, open_store


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A fresh, empty store of each kind."""
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    fresh: Callable[[str], str] = request.getfixturevalue("s3_store_uri")
    return open_store(fresh("contract"))
