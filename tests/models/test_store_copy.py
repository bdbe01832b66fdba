"""Files travel through the store by digest: sent once, fetched once a machine, never half believed.

The processes here are real, and so are the kills; only windows are small.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import multiprocessing
import os
import shutil
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from types import SimpleNamespace

import pytest

from kldcloud.errors import FormatError, StoreError, UserError
from kldcloud.models import part_file
from kldcloud.models.store_copy import cached_copy, upload_once
from kldcloud.store import Store, open_store
from kldcloud.store.digest import sha256_bytes
from kldcloud.store.folder import FolderStore

WINDOW = 10_000
# The same in every process.
DATA = hashlib.shake_256(b"a model").digest(WINDOW * 9 + 123)
SHA256 = sha256_bytes(DATA)
SIZE = len(DATA)
HALF = WINDOW * 4
KEY = f"models/{SHA256}"
SPAWN = multiprocessing.get_context("spawn")


class WatchedStore(FolderStore):
    """A folder that notes where each read began, and calls `before` ahead of every read."""

    def __init__(self, root: Path, before: Callable[[int], object] = lambda _start: None) -> None:
        super().__init__(root)
        self.notes = root.with_name("reads")
        self.before = before

    def read_into(
        self, key: str, start: int, out: memoryview, *, sha256: str | None = None
    ) -> None:
        self.before(start)
        with self.notes.open("a") as notes:
            notes.write(f"{start}\n")
        super().read_into(key, start, out, sha256=sha256)

    def starts(self) -> list[int]:
        """Where reads began, by any process, since the last time that this was asked."""
        with contextlib.suppress(FileNotFoundError):
            found = [int(line) for line in self.notes.read_text().splitlines()]
            self.notes.unlink()
            return found
        return []


ONE_DOWNLOAD = list(range(0, SIZE, WINDOW))


@dataclass(frozen=True)
class Place:
    """A store that holds the file, and an empty cache."""

    store: WatchedStore
    cache: Path

    @property
    def object(self) -> Path:
        return Path(self.store.uri) / KEY

    @property
    def folder(self) -> Path:
        return self.cache / "models"

    def copy(self, progress: Callable[[int, int], None] | None = None) -> Path:
        return cached_copy(self.store, SHA256, SIZE, cache=self.cache, progress=progress)

    def names(self) -> list[str]:
        """What is in the cache, without the digest that all names begin with."""
        return sorted(each.name.removeprefix(SHA256) for each in self.folder.iterdir())

    def part(self) -> Path:
        (part,) = self.folder.glob("*.part")
        return part


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests that are remembered are this test's own."""
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "own-cache"))
    monkeypatch.setattr(part_file, "WINDOW_BYTES", WINDOW)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    store = WatchedStore(tmp_path / "store")
    store.write_new(KEY, DATA)
    return Place(store, tmp_path / "cache")


@pytest.fixture(params=["folder", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    fresh: Callable[[str], str] = request.getfixturevalue("s3_store_uri")
    return open_store(fresh("copies"))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def cut_off(start: int) -> None:
    if start >= HALF:
        raise StoreError("the connection was cut")


# Upload


def test_a_file_goes_up_and_comes_down_again(
    any_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Larger than one window, a window larger than one request, and sent in parts.
    monkeypatch.setattr(part_file, "WINDOW_BYTES", 20 << 20)
    data = os.urandom((40 << 20) + 12345)
    sha256 = sha256_bytes(data)
    told: list[tuple[int, int]] = []
    source = write(tmp_path / "m.gguf", data)
    key = upload_once(any_store, source, sha256, lambda *step: told.append(step))
    assert key == f"models/{sha256}"
    assert told == [(0, len(data)), (len(data), len(data))]
    told.clear()
    path = cached_copy(
        any_store,
        sha256,
        len(data),
        cache=tmp_path / "cache",
        progress=lambda *step: told.append(step),
    )
    assert path == tmp_path / "cache" / key
    assert path.read_bytes() == data
    assert told[0] == (0, len(data))
    assert told[-1] == (len(data), len(data))
    assert told == sorted(told)


def test_one_object_serves_two_names_and_is_sent_once(any_store: Store, tmp_path: Path) -> None:
    assert upload_once(any_store, write(tmp_path / "a.txt", DATA), SHA256) == KEY
    told: list[tuple[int, int]] = []
    second = write(tmp_path / "b.txt", DATA)
    assert upload_once(any_store, second, SHA256, lambda *step: told.append(step)) == KEY
    assert told == [(SIZE, SIZE)]
    assert [(each.key, each.size) for each in any_store.list("")] == [(KEY, SIZE)]


def test_an_object_that_is_there_is_never_written_again(place: Place, tmp_path: Path) -> None:
    before = place.object.stat()
    upload_once(place.store, write(tmp_path / "m.gguf", DATA), SHA256)
    after = place.object.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_file_that_is_not_the_one_meant_is_not_sent(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    path = write(tmp_path / "m.gguf", DATA[1:])
    with pytest.raises(UserError) as caught:
        upload_once(store, path, SHA256)
    assert str(caught.value) == f"{path} has just been changed; run the same command again"
    assert list(store.list("")) == []


def test_an_object_made_of_a_file_that_changed_meanwhile_does_not_stay(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", DATA)

    class Slow(FolderStore):
        def write_new_file(self, key: str, path: Path) -> bool:
            write(path, DATA[::-1])
            return super().write_new_file(key, path)

    store = Slow(tmp_path / "store")
    with pytest.raises(UserError, match="has just been changed"):
        upload_once(store, path, SHA256)
    assert list(store.list("")) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [("none", "cannot read {}: No such file or directory"), ("empty", "{} is empty")],
)
def test_a_file_that_cannot_travel_is_named(tmp_path: Path, name: str, says: str) -> None:
    write(tmp_path / "empty", b"")
    with pytest.raises(UserError) as caught:
        upload_once(open_store(str(tmp_path / "store")), tmp_path / name, SHA256)
    assert str(caught.value) == says.format(tmp_path / name)


# What is refused before anything is opened

BAD_DIGESTS = ["", SHA256[1:], SHA256 + "0", SHA256.upper(), f"{SHA256[:-1]}g", f"{SHA256}\n"]
BAD_DIGESTS += ["../" * 21 + "a", f"{SHA256[:-2]}/a"]


@pytest.mark.parametrize("sha256", BAD_DIGESTS)
def test_what_is_no_digest_names_no_object_and_no_file(tmp_path: Path, sha256: str) -> None:
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(FormatError, match="is no SHA-256"):
        cached_copy(store, sha256, SIZE, cache=tmp_path / "cache")
    with pytest.raises(FormatError, match="is no SHA-256"):
        upload_once(store, write(tmp_path / "m", DATA), sha256)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m"]


@pytest.mark.parametrize("size", [0, -1, 1 << 60])
def test_a_size_that_no_file_has_is_refused(place: Place, size: int) -> None:
    with pytest.raises(FormatError, match=f"{KEY} cannot have {size} bytes"):
        cached_copy(place.store, SHA256, size, cache=place.cache)
    assert not place.cache.exists()


def test_an_object_of_another_size_is_neither_fetched_nor_replaced(
    place: Place, tmp_path: Path
) -> None:
    place.object.write_bytes(DATA[:-1])
    says = (
        f"{KEY} in {place.store.uri} has {SIZE - 1:,} bytes, not {SIZE:,}; delete that object and"
        " launch the job again on the machine that has the file"
    )
    with pytest.raises(FormatError) as caught:
        place.copy()
    assert str(caught.value) == says
    with pytest.raises(FormatError) as caught:
        upload_once(place.store, write(tmp_path / "m", DATA), SHA256)
    assert str(caught.value) == says
    assert place.object.read_bytes() == DATA[:-1]
    assert place.store.starts() == []


def test_an_object_that_is_not_there_is_named_with_what_to_do(place: Place) -> None:
    place.object.unlink()
    with pytest.raises(StoreError) as caught:
        place.copy()
    assert str(caught.value) == (
        f"no object {KEY} in {place.store.uri};"
        " launch the job again on the machine that has the file"
    )


# One download a machine


@dataclass(frozen=True)
class Fetcher:
    """A process of its own that wants the copy.

    Attributes:
        process: fails unless it gets the right bytes.
        arrived: it has begun to fetch the second half.
        go_on: it waits for this there.
        told: it has heard of progress.
    """

    process: BaseProcess
    arrived: Event
    go_on: Event
    told: Event

    def wait_for(self, event: Event) -> None:
        while not event.wait(0.1):
            assert self.process.is_alive()

    def finish(self) -> None:
        self.go_on.set()
        self.process.join()
        assert self.process.exitcode == 0


def fetch(store: Path, cache: Path, arrived: Event, go_on: Event, told: Event) -> None:
    """Run in a process of its own."""
    part_file.WINDOW_BYTES = WINDOW

    def wait(start: int) -> None:
        if start == HALF:
            arrived.set()
            go_on.wait()

    path = cached_copy(
        WatchedStore(store, wait),
        SHA256,
        SIZE,
        cache=cache,
        progress=lambda _done, _all: told.set(),
    )
    assert path.read_bytes() == DATA


@pytest.fixture
def start_fetcher(place: Place) -> Iterator[Callable[[], Fetcher]]:
    started: list[BaseProcess] = []

    def start() -> Fetcher:
        arrived, go_on, told = SPAWN.Event(), SPAWN.Event(), SPAWN.Event()
        root = Path(place.store.uri)
        process = SPAWN.Process(target=fetch, args=(root, place.cache, arrived, go_on, told))
        process.start()
        started.append(process)
        return Fetcher(process, arrived, go_on, told)

    yield start
    for process in started:
        process.kill()
        process.join()


def test_of_four_processes_one_fetches_and_all_have_it(
    place: Place, start_fetcher: Callable[[], Fetcher]
) -> None:
    fetchers = [start_fetcher() for _ in range(4)]
    # All four have looked, and found nothing, before the one that fetches may go on.
    for each in fetchers:
        each.wait_for(each.told)
    assert sum(each.arrived.is_set() for each in fetchers) <= 1
    for each in fetchers:
        each.go_on.set()
    for each in fetchers:
        each.finish()
    assert place.store.starts() == ONE_DOWNLOAD
    assert place.names() == ["", ".json", ".lock"]


def test_of_eight_threads_one_fetches_and_all_have_it(place: Place) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(place.copy())) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [each.read_bytes() == DATA for each in paths] == [True] * 8
    assert place.store.starts() == ONE_DOWNLOAD


def test_a_process_that_waits_goes_on_where_a_killed_one_stopped(
    place: Place, start_fetcher: Callable[[], Fetcher]
) -> None:
    first = start_fetcher()
    first.wait_for(first.arrived)
    second = start_fetcher()
    # It can have heard only of what the first one has fetched.
    second.wait_for(second.told)
    assert not second.arrived.is_set()
    first.process.kill()
    first.process.join()
    assert not (place.folder / SHA256).exists()
    second.finish()
    assert (place.folder / SHA256).read_bytes() == DATA
    starts = place.store.starts()
    # Of the first half, only the window that the kill may have caught unwritten comes twice.
    assert starts.count(0) == 1
    assert len(starts) <= len(ONE_DOWNLOAD) + 1
    assert place.names() == ["", ".json", ".lock"]


def test_machines_whose_locks_do_not_reach_each_other_both_end_with_one_file(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    both = threading.Barrier(2)
    place.store.before = lambda start: both.wait() if start == HALF else None
    found: list[tuple[bytes, int]] = []

    def copy() -> None:
        path = place.copy()
        found.append((path.read_bytes(), path.stat().st_ino))

    threads = [threading.Thread(target=copy) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    # One inode: what the first has mapped is not pulled away by the second.
    assert found == [(DATA, found[0][1])] * 2
    assert sorted(place.store.starts()) == sorted(ONE_DOWNLOAD * 2)
    assert place.names() == ["", ".json", ".lock"]


def test_a_file_system_without_links_has_copies_too(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace())
    assert place.copy().read_bytes() == DATA
    assert place.names() == ["", ".json", ".lock"]


# Cut off, damaged, no room


def test_a_download_that_was_cut_off_goes_on_where_it_stopped(place: Place) -> None:
    place.store.before = cut_off
    with pytest.raises(StoreError, match="cut"):
        place.copy()
    assert place.part().read_bytes() == DATA[:HALF]
    assert place.store.starts() == ONE_DOWNLOAD[:4]
    place.store.before = lambda _start: None
    told: list[tuple[int, int]] = []
    assert place.copy(lambda *step: told.append(step)).read_bytes() == DATA
    assert place.store.starts() == ONE_DOWNLOAD[4:]
    assert told == sorted(told)


@pytest.mark.parametrize("part", [b"x" * HALF, b"x" * SIZE, b"x" * (SIZE + 1)])
def test_a_part_with_wrong_bytes_is_thrown_away_and_not_blamed_on_the_store(
    place: Place, part: bytes
) -> None:
    place.store.before = cut_off
    with pytest.raises(StoreError, match="cut"):
        place.copy()
    place.part().write_bytes(part)
    place.store.before = lambda _start: None
    place.store.starts()
    assert place.copy().read_bytes() == DATA
    assert place.store.starts()[-len(ONE_DOWNLOAD) :] == ONE_DOWNLOAD
    assert place.names() == ["", ".json", ".lock"]


def test_an_object_with_wrong_bytes_is_named_and_leaves_nothing_to_believe(place: Place) -> None:
    wrong = DATA[:-1] + bytes([DATA[-1] ^ 1])
    place.object.write_bytes(wrong)
    with pytest.raises(FormatError) as caught:
        place.copy()
    assert str(caught.value) == (
        f"{KEY} in {place.store.uri} has SHA-256 {sha256_bytes(wrong)[:16]}..., not"
        f" {SHA256[:16]}...; run the same command again; if that does not help, delete that object"
        " and launch the job again on the machine that has the file"
    )
    assert place.names() == [".lock"]
    place.object.write_bytes(DATA)
    assert place.copy().read_bytes() == DATA


def test_no_room_is_said_before_anything_is_fetched(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=SIZE - 1))
    with pytest.raises(StoreError) as caught:
        place.copy()
    assert str(caught.value) == (
        f"{place.folder}: a download needs {SIZE:,} bytes and {SIZE - 1:,} are free;"
        " set KLDCLOUD_CACHE to a folder with room"
    )
    assert place.store.starts() == []


def test_room_is_needed_only_for_what_is_still_missing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.store.before = cut_off
    with pytest.raises(StoreError, match="cut"):
        place.copy()
    place.store.before = lambda _start: None
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=SIZE - HALF))
    assert place.copy().read_bytes() == DATA


def test_a_disk_that_fills_up_meanwhile_is_given_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError) as caught:
        place.copy()
    assert str(caught.value) == (
        f"{place.folder}: cannot keep a download there: No space left on device;"
        " set KLDCLOUD_CACHE to a folder with room"
    )
    assert place.names() == [".lock"]


def test_parts_that_nobody_went_on_with_are_swept_after_a_day(place: Place) -> None:
    place.folder.mkdir(parents=True)
    old = write(place.folder / f"{'0' * 64}.000000000000.part", b"x")
    new = write(place.folder / f"{'1' * 64}.000000000000.part", b"x")
    yesterday = time.time() - 25 * 3600
    os.utime(old, (yesterday, yesterday))
    place.copy()
    assert (old.exists(), new.exists()) == (False, True)


def test_a_large_file_takes_two_windows_of_memory(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = 8 << 20
    monkeypatch.setattr(part_file, "WINDOW_BYTES", window)
    tracemalloc.start()
    try:
        data = bytes(window * 8)
        sha256 = sha256_bytes(data)
        place.store.write_new(f"models/{sha256}", data)
        size = len(data)
        del data
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        cached_copy(place.store, sha256, size, cache=place.cache)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 3 * window


# A copy that changed


def test_a_copy_that_was_checked_is_not_read_again(place: Place) -> None:
    place.copy()
    place.store.starts()
    told: list[tuple[int, int]] = []
    shutil.rmtree(place.store.uri)
    assert place.copy(lambda *step: told.append(step)).read_bytes() == DATA
    assert told == []


@pytest.mark.parametrize("damage", [DATA[:HALF], b"", DATA + b"x", b"x" * SIZE])
def test_a_copy_that_was_damaged_is_replaced(place: Place, damage: bytes) -> None:
    place.copy().write_bytes(damage)
    place.store.starts()
    assert place.copy().read_bytes() == DATA
    assert place.store.starts() == ONE_DOWNLOAD
    place.copy()
    assert place.store.starts() == []


def test_a_copy_that_was_only_touched_is_hashed_and_not_fetched(place: Place) -> None:
    path = place.copy()
    place.store.starts()
    os.utime(path, (1, 1))
    told: list[tuple[int, int]] = []
    assert place.copy(lambda *step: told.append(step)) == path
    assert told == [(0, SIZE), (SIZE, SIZE)]
    assert place.store.starts() == []
    told.clear()
    place.copy(lambda *step: told.append(step))
    assert told == []


@pytest.mark.parametrize("note", [b"", b"[]", b'{"identity": [1, 2, 3]}', b'{"identity": null}'])
def test_a_note_that_says_nothing_is_not_believed(place: Place, note: bytes) -> None:
    path = place.copy()
    path.write_bytes(b"x" * SIZE)
    path.with_name(f"{SHA256}.json").write_bytes(note)
    assert place.copy().read_bytes() == DATA


def test_a_cache_that_cannot_be_written_is_named(place: Place) -> None:
    write(place.cache, b"")
    with pytest.raises(StoreError) as caught:
        place.copy()
    assert str(caught.value) == (
        f"{place.folder}: cannot keep a download there: Not a directory;"
        " set KLDCLOUD_CACHE to a folder with room"
    )
