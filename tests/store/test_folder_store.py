"""The folder store where folders differ from buckets: links, kills, full and locked disks."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kldcloud.errors import StoreError
from kldcloud.store import open_store
from kldcloud.store.create_once import create_once, rename_once

NOBODY = 65534


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    mount = shutil.which("mount")
    point = tmp_path / "tiny"
    point.mkdir()
    options = ["-t", "tmpfs", "-o", "size=256k", "tmpfs", str(point)]
    if (
        mount is None
        or subprocess.run([mount, *options], capture_output=True, check=False).returncode
    ):
        pytest.skip("only root can mount a tiny file system")
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """Act as a user who owns nothing, where we are root; else we are such a user already."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_writer_killed_midway_leaves_no_object(tmp_path: Path) -> None:
    """The source is a pipe: the writer is killed while it waits for the second half."""
    pipe, root = tmp_path / "pipe", tmp_path / "store"
    os.mkfifo(pipe)
    script = (
        "import sys; from pathlib import Path; from kldcloud.store import open_store;"
        " open_store(sys.argv[1]).write_new_file('p/0', Path(sys.argv[2]))"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(root), str(pipe)])
    with pipe.open("wb") as source:
        # More than a copy's buffer, so that a part has reached the temporary file.
        source.write(bytes(9 << 20))
        source.flush()
        while not any(each.stat().st_size for each in (root / ".tmp").iterdir()):
            time.sleep(0.01)
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
    store = open_store(str(root))
    assert store.size("p/0") is None
    assert list(store.list("")) == []
    assert store.write_new("p/0", b"whole")
    assert [each.key for each in store.list("")] == ["p/0"]


def test_leftovers_of_dead_writers_are_swept_after_a_day(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write("x", b"1")
    old, young = tmp_path / ".tmp" / "1-old", tmp_path / ".tmp" / "2-young"
    for each in (old, young):
        each.write_bytes(b"half")
    yesterday = time.time() - 25 * 3600
    os.utime(old, (yesterday, yesterday))
    again = open_store(str(tmp_path))
    assert not old.exists()
    assert young.exists()
    assert [each.key for each in again.list("")] == ["x"]


def test_no_write_leaves_a_temporary_file(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write_new("a/x", b"1")
    store.write_new("a/x", b"2")
    store.write("a/x", b"3")
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    root = tmp_path / "store"
    root.mkdir()
    (root / "folder").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    (root / "dangling").symlink_to(outside / "new")
    store = open_store(str(root))
    verbs: list[Callable[[], object]] = [
        lambda: store.read("folder/secret"),
        lambda: store.read("file"),
        lambda: store.size("file"),
        lambda: store.read_into("file", 0, memoryview(bytearray(1))),
        lambda: store.write("folder/new", b"x"),
        lambda: store.write_new("folder/new", b"x"),
        lambda: store.write_new("dangling", b"x"),
        lambda: store.write("file", b"x"),
        lambda: store.delete("folder/secret"),
        lambda: list(store.list("")),
        lambda: list(store.list("folder/")),
    ]
    for verb in verbs:
        with pytest.raises(StoreError, match="is a symbolic link"):
            verb()
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"secret": b"secret"}


def test_a_linked_temporary_folder_is_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "old").write_bytes(b"x")
    os.utime(outside / "old", (0, 0))
    root = tmp_path / "store"
    root.mkdir()
    (root / ".tmp").symlink_to(outside)
    with pytest.raises(StoreError, match="is a symbolic link"):
        open_store(str(root)).write_new("x", b"1")
    assert [path.name for path in outside.iterdir()] == ["old"]


def test_the_store_itself_may_be_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert open_store(str(tmp_path / "link")).write_new("x", b"1")
    assert open_store(str(tmp_path / "real")).read("x") == b"1"


def test_foreign_files_are_not_listed(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write("a/x", b"1")
    (tmp_path / "a" / ".DS_Store").touch()
    (tmp_path / "a" / "odd name").touch()
    os.mkfifo(tmp_path / "a" / "pipe")
    assert [each.key for each in store.list("")] == ["a/x"]


def test_a_pipe_in_an_objects_place_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    store = open_store(str(tmp_path))
    with pytest.raises(StoreError, match="no object pipe"):
        store.read("pipe")
    assert store.size("pipe") is None


def test_a_file_where_a_folder_must_be_is_named(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write("runs", b"a file")
    assert store.size("runs/r1") is None
    with pytest.raises(StoreError, match="no object runs/r1"):
        store.read("runs/r1")
    with pytest.raises(StoreError, match="has a file where a folder is needed"):
        store.write_new("runs/r1", b"x")
    store.write("a/b", b"1")
    with pytest.raises(StoreError, match="has a folder where an object is needed"):
        store.write_new("a", b"x")


def test_a_full_disk_is_named_and_keeps_nothing_half_written(tiny_disk: Path) -> None:
    store = open_store(str(tiny_disk))
    assert store.write_new("small", bytes(50_000))
    for verb in (store.write_new, store.write):
        with pytest.raises(StoreError, match=r"is on a full disk .*; free some space"):
            verb("large", bytes(400_000))
    assert [each.key for each in store.list("")] == ["small"]
    assert list((tiny_disk / ".tmp").iterdir()) == []
    assert store.write_new("large", bytes(100_000))


def test_a_file_over_the_size_limit_is_named(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from kldcloud.store import open_store;"
        " from kldcloud.errors import StoreError;"
        " resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        " store = open_store(sys.argv[1])\n"
        "try: store.write_new('x', bytes(200_000))\n"
        "except StoreError as error: print(error)\n"
        "print(store.size('x'), store.write_new('x', bytes(1000)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "s")],
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert "may not hold a file so large (x); raise `ulimit -f`" in first
    assert second == "None True"


def test_a_folder_without_rights_is_named() -> None:
    # Not below pytest's own folder, which is closed to others altogether.
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        closed = root / "closed"
        closed.write_bytes(b"1")
        closed.chmod(0o000)
        root.chmod(0o555)
        with without_rights():
            store = open_store(name)
            with pytest.raises(StoreError, match=r"not writable or readable for you .*; check"):
                store.write_new("x", b"1")
            with pytest.raises(StoreError, match="not writable or readable for you"):
                store.read("closed")
            probe = store.probe()
        root.chmod(0o000)
        with without_rights(), pytest.raises(StoreError, match="not writable or readable"):
            open_store(f"{name}/inside")
        root.chmod(0o700)
    assert not probe.ok
    assert "not writable" in probe.findings[-1]


def test_a_read_only_disk_is_named(tiny_disk: Path) -> None:
    store = open_store(str(tiny_disk))
    store.write("x", b"1")
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(StoreError, match="is on a read-only file system"):
        store.write_new("y", b"1")
    assert open_store(str(tiny_disk)).read("x") == b"1"


def test_a_store_across_two_disks_is_named(tiny_disk: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with pytest.raises(StoreError, match="spans two file systems"):
        store.write_new("tiny/x", b"1")
    assert list(tiny_disk.iterdir()) == []


@pytest.mark.parametrize("create", [create_once, rename_once])
def test_a_finished_file_takes_its_name_only_once(
    create: Callable[[Path, Path], bool], tmp_path: Path
) -> None:
    first, second, target = tmp_path / "1", tmp_path / "2", tmp_path / "target"
    first.write_bytes(b"first")
    second.write_bytes(b"second")
    assert create(first, target) is True
    assert create(second, target) is False
    assert target.read_bytes() == b"first"
    assert second.read_bytes() == b"second"
    with pytest.raises(FileNotFoundError):
        create(tmp_path / "absent", tmp_path / "other")


def test_without_hard_links_a_store_still_creates_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No such file system can be made here, so link(2) itself is made to refuse as on FAT."""

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(source), None, str(target))

    monkeypatch.setattr(os, "link", refuse)
    store = open_store(str(tmp_path))
    assert store.write_new("x", b"1") is True
    assert store.write_new("x", b"2") is False
    assert store.read("x") == b"1"
    assert store.probe().ok
    assert list((tmp_path / ".tmp").iterdir()) == []
