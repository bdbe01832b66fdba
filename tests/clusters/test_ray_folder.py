"""Ray's folder is gone after the block, whatever interrupted that and whoever still wrote to it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from kldcloud.clusters.ray_folder import ray_folder

WRITER = """
import sys, time
with open(sys.argv[1] + "/gcs_server.out", "w") as log:
    print("here", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_an_interrupt_just_as_it_is_made_leaves_none(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Path.mkdir

    def interrupted(path: Path, **how: Any) -> None:
        make(path, **how)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt), ray_folder():
        pytest.fail("it was interrupted before")
    assert not list(room.iterdir())


def test_what_ray_was_just_starting_is_ended_with_it(room: Path) -> None:
    with ray_folder() as folder:
        assert [str(each) for each in room.iterdir()] == [folder]
        assert Path(folder).stat().st_mode & 0o777 == 0o700
        ours = (Path(folder) / "driver.log").open("w")
        late = subprocess.Popen([sys.executable, "-c", WRITER, folder], stdout=subprocess.PIPE)
        assert late.stdout is not None
        assert late.stdout.readline() == b"here\n"
    late.communicate(timeout=30)
    assert late.returncode < 0
    assert not list(room.iterdir())
    ours.close()
