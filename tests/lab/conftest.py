"""Fixtures of the tests that want real machines: the lab, and its S3 server from outside."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_server import S3Server

from .lifetime import bring_up, store_from_outside, take_down
from .needs import obstacle
from .session import Lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two idle nodes, a login node that sees the tests' temporary folders, and an S3 server."""
    if problem := obstacle():
        pytest.skip(problem)
    # Not under pytest's own folder: paths of Unix sockets have to be short.
    folder = Path(tempfile.mkdtemp(prefix="lab-"))
    fresh = bring_up(folder, [tmp_path_factory.getbasetemp()], tied=True)
    try:
        yield fresh
    finally:
        take_down(fresh)


@pytest.fixture(scope="session")
def lab_store(lab: Lab) -> Iterator[S3Server]:
    """The lab's S3 server as the process of the tests reaches it."""
    with store_from_outside(lab) as server:
        yield server
