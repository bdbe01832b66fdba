"""The secrets of a launch are in the memory of its processes and nowhere else."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kldcloud.clusters.sealed import KEY_FILE, VARIABLE

from .launches import Watched

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FOLDERS = ("home", "tmp", "spool", "log")
"""Of the lab: what SkyPilot, Slurm, Ray and we write."""


@pytest.fixture(scope="module")
def secrets(watched: Watched) -> list[bytes]:
    """The S3 server's secret key and Ray's token, as anybody might write them down."""
    values = [watched.desk.server.secret_key.encode(), *watched.processes.tokens]
    assert len(values) == 2
    return [spelling for value in values for spelling in spellings(value)]


def spellings(secret: bytes) -> Iterator[bytes]:
    """A value in the clear, as hex digits, and as base64 makes it at any place of a longer text."""
    yield secret
    yield secret.hex().encode()
    for before in range(3):
        # Characters that hold bits of what is before or behind the value say nothing of it.
        whole = len(secret) - (len(secret) + before) % 3
        text = base64.b64encode(b"\0" * before + secret[:whole])
        yield text[4 if before else 0 :]


def files_with(folders: list[Path], words: list[bytes], tmp_path: Path) -> list[str]:
    """Files that have any of these words; the packages of Python environments are left out."""
    asked = tmp_path / "words"
    asked.write_bytes(b"\n".join(words))
    options = ["-rlaF", f"--file={asked}", "--exclude-dir=site-packages", "--devices=skip"]
    done = subprocess.run(["grep", *options, *folders], capture_output=True, text=True, check=False)
    assert done.returncode in {0, 1}, done.stderr
    return done.stdout.splitlines()


def test_base64_of_a_longer_text_is_recognised() -> None:
    words = list(spellings(b"correct horse"))
    for before in ("", "x", "xy"):
        text = base64.b64encode(f"{before}correct horse battery".encode())
        assert any(word in text for word in words)


def test_no_command_line_has_a_secret(watched: Watched, secrets: list[bytes]) -> None:
    lines = b"\n".join(watched.processes.command_lines)
    for seen in (b"raylet", b"kldcloud.cli.main\0node", b"sky.skylet", b"ssh\0"):
        assert seen in lines
    assert [word for word in secrets if word in lines] == []


def test_no_file_of_the_lab_has_a_secret(
    watched: Watched, secrets: list[bytes], tmp_path: Path
) -> None:
    folders = [watched.desk.lab.places.folder / name for name in FOLDERS]
    # What was sealed went the way that secrets would have gone, through SkyPilot's own files.
    assert files_with(folders, [VARIABLE.encode()], tmp_path)
    assert files_with(folders, secrets, tmp_path) == []


def test_no_object_of_the_store_has_a_secret(watched: Watched, secrets: list[bytes]) -> None:
    desk = watched.desk
    keys = [key for key in desk.kept() if not key.endswith((".parquet", ".shard"))]
    assert len(keys) > 10
    for key in keys:
        data = desk.read(key)
        assert [word for word in secrets if word in data] == [], key


def test_nothing_that_was_printed_has_a_secret(watched: Watched, secrets: list[bytes]) -> None:
    printed = (watched.said.stdout + watched.said.stderr).encode()
    assert [word for word in secrets if word in printed] == []


def test_the_key_of_what_was_sealed_is_gone_once_the_machines_are(watched: Watched) -> None:
    home = watched.desk.lab.places.folder / "home"
    launch = watched.desk.launch_record()["launch"]
    assert watched.desk.launch_record()["down"]
    assert list(home.rglob(f"launches/{launch}/{KEY_FILE}")) == []
    assert list(home.rglob(f"{launch}*/sky_workdir/{KEY_FILE}")) == []
