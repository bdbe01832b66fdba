"""Fixtures of the tests that want real machines: the lab, its S3 server, and launches on it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from store_server import S3Server
from tiny_models import tiny_pair

from tests.cli.command_line import run as command

from .launches import RESULTS, Desk, ProcessWatch, Watched, job_facts, write_text
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


@pytest.fixture(scope="session")
def desk_for(
    lab: Lab, lab_store: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Desk]:
    """Makes desks, each with a store of its own, for one and the same job."""
    folder = tmp_path_factory.mktemp("sweep")
    text = folder / "text.txt"
    write_text(text)
    facts = job_facts(tiny_pair(folder / "models", vocabulary=2048, bos=True), text)

    def make(name: str) -> Desk:
        desk = Desk(lab, lab_store, tmp_path_factory.mktemp(name), lab.store_uri(name), facts)
        desk.write()
        return desk

    return make


@pytest.fixture(scope="session")
def local_bytes(
    desk_for: Callable[[str], Desk], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """What the job comes to on this machine, in a folder store and without SkyPilot."""
    desk, folder = desk_for("local"), tmp_path_factory.mktemp("local")
    here = folder / "here.yaml"
    here.write_text("provider: local\nworkers: 1\nthreads_per_worker: 1\n")
    said = command("launch", desk.job, "--cluster", here, "--store", folder / "store", timeout=600)
    assert said.code == 0, said.err
    (run,) = (folder / "store" / "runs").iterdir()
    return {name: (run / name).read_bytes() for name in RESULTS}


@pytest.fixture(scope="session")
def watched(desk_for: Callable[[str], Desk]) -> Watched:
    """A launch that somebody stayed with to its end, and what could be seen meanwhile."""
    desk = desk_for("watched")
    with ProcessWatch(desk.lab) as watch:
        said = desk.launch()
    assert said.returncode == 0, said.stderr
    return Watched(desk, said, watch)
