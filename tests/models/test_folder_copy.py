"""Model folders travel through the store: each file sent and fetched once, none half believed."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from kldcloud.errors import FormatError, StoreError, UserError
from kldcloud.models import part_file
from kldcloud.models.folder_copy import fetch_folder, upload_folder_once
from kldcloud.models.folder_digest import folder_manifest, folder_sha256
from kldcloud.models.model_folder import model_file_names, read_model_folder
from kldcloud.store import Store, open_store
from kldcloud.store.digest import DigestError, sha256_bytes
from kldcloud.store.folder import FolderStore
from tests.tiny_folders import write_folder

SPAWN = multiprocessing.get_context("spawn")
SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "own-cache"))
    monkeypatch.setattr(part_file, "WINDOW_BYTES", 100)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = write_folder(tmp_path / "model", shards=3)
    (folder / "chat_template.jinja").touch()
    return folder


@pytest.fixture(params=["folder", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    fresh: Callable[[str], str] = request.getfixturevalue("s3_store_uri")
    return open_store(fresh("folders"))


class WatchedStore(FolderStore):
    """A folder that notes every read, and calls `before` ahead of it."""

    def __init__(
        self, root: Path, before: Callable[[str, int], object] = lambda _key, _start: None
    ) -> None:
        super().__init__(root)
        self.notes = root.with_name("reads")
        self.before = before

    def read_into(
        self, key: str, start: int, out: memoryview, *, sha256: str | None = None
    ) -> None:
        self.before(key, start)
        with self.notes.open("a") as notes:
            notes.write(f"{key} {start}\n")
        super().read_into(key, start, out, sha256=sha256)

    def reads(self) -> list[str]:
        """What was read, by any process, since the last time that this was asked."""
        with contextlib.suppress(FileNotFoundError):
            found = self.notes.read_text().splitlines()
            self.notes.unlink()
            return found
        return []


def test_a_folder_goes_up_and_comes_down_again(
    any_store: Store, folder: Path, tmp_path: Path
) -> None:
    digest = folder_sha256(folder)
    told: list[tuple[int, int]] = []
    key = upload_folder_once(any_store, folder, digest, lambda *step: told.append(step))
    total = folder_manifest(folder).size
    assert key == f"models/{digest}"
    assert (told[0], told[-1], told) == ((0, total), (total, total), sorted(told))
    told.clear()
    copy = fetch_folder(
        any_store, digest, cache=tmp_path / "cache", progress=lambda *step: told.append(step)
    )
    assert (told[-1], told) == ((total, total), sorted(told))
    names = sorted(each.name for each in copy.iterdir())
    assert names == list(model_file_names(folder))
    assert "README.md" not in names
    for name in names:
        assert (copy / name).read_bytes() == (folder / name).read_bytes()
    assert read_model_folder(copy).tensor_bytes == read_model_folder(folder).tensor_bytes
    assert folder_sha256(copy) == digest


def test_what_is_there_is_neither_sent_nor_fetched_again(folder: Path, tmp_path: Path) -> None:
    store = WatchedStore(tmp_path / "store")
    digest = folder_sha256(folder)
    upload_folder_once(store, folder, digest)
    before = {path: path.stat().st_ino for path in (tmp_path / "store").rglob("*")}
    upload_folder_once(store, folder.rename(tmp_path / "other name"), digest)
    assert {path: path.stat().st_ino for path in (tmp_path / "store").rglob("*")} == before
    fetch_folder(store, digest, cache=tmp_path / "cache")
    assert store.reads()
    told: list[tuple[int, int]] = []
    copy = fetch_folder(
        store, digest, cache=tmp_path / "cache", progress=lambda *step: told.append(step)
    )
    assert (store.reads(), told) == ([], [])
    assert copy.is_dir()


def test_the_manifest_comes_last(folder: Path, tmp_path: Path) -> None:
    class Full(FolderStore):
        def write_new_file(self, key: str, path: Path) -> bool:
            if path.name == SHARD:
                raise StoreError("no room")
            return super().write_new_file(key, path)

    digest = folder_sha256(folder)
    with pytest.raises(StoreError, match="no room"):
        upload_folder_once(Full(tmp_path / "store"), folder, digest)
    store = open_store(str(tmp_path / "store"))
    assert store.size(f"models/{digest}") is None
    with pytest.raises(StoreError) as caught:
        fetch_folder(store, digest, cache=tmp_path / "cache")
    assert str(caught.value) == (
        f"no object models/{digest} in {store.uri};"
        " launch the job again on the machine that has the folder"
    )


def test_a_folder_that_is_not_the_one_meant_is_not_sent(folder: Path, tmp_path: Path) -> None:
    digest = folder_sha256(folder)
    (folder / "tokenizer.json").write_text("{}")
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(UserError) as caught:
        upload_folder_once(store, folder, digest)
    assert str(caught.value) == f"{folder} has just been changed; run the same command again"
    assert list(store.list("")) == []


def test_a_manifest_with_other_bytes_in_the_store_is_refused(folder: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    digest = folder_sha256(folder)
    store.write_new(f"models/{digest}", b"{}")
    with pytest.raises(DigestError):
        upload_folder_once(store, folder, digest)
    with pytest.raises(DigestError):
        fetch_folder(store, digest, cache=tmp_path / "cache")


def test_a_single_file_is_no_folder(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    for data in (b"GGUF" + bytes(100), bytes(5 << 20)):
        store.write_new(f"models/{sha256_bytes(data)}", data)
        with pytest.raises(FormatError, match="models/"):
            fetch_folder(store, sha256_bytes(data), cache=tmp_path / "cache")
    with pytest.raises(FormatError, match="is no SHA-256"):
        fetch_folder(store, "../" * 21 + "a", cache=tmp_path / "cache")


def test_a_damaged_copy_is_mended(folder: Path, tmp_path: Path) -> None:
    store = WatchedStore(tmp_path / "store")
    digest = folder_sha256(folder)
    upload_folder_once(store, folder, digest)
    copy = fetch_folder(store, digest, cache=tmp_path / "cache")
    (copy / SHARD).write_bytes(b"x" * (copy / SHARD).stat().st_size)
    (copy / "config.json").unlink()
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer.json").write_text("another")
    (tmp_path / "cache" / "models" / digest).write_bytes(b"{}")
    store.reads()
    assert fetch_folder(store, digest, cache=tmp_path / "cache") == copy
    for name in model_file_names(folder):
        assert (copy / name).read_bytes() == (folder / name).read_bytes()
    fetched = {line.split()[0] for line in store.reads()}
    assert fetched == {f"models/{digest}", f"models/{sha256_bytes((copy / SHARD).read_bytes())}"}


def fetch(store: Path, digest: str, cache: Path, slow: str, arrived: Event, go_on: Event) -> None:
    """Run in a process of its own."""
    part_file.WINDOW_BYTES = 100

    def wait(key: str, start: int) -> None:
        if key == slow and start:
            arrived.set()
            go_on.wait()

    copy = fetch_folder(WatchedStore(store, wait), digest, cache=cache)
    assert folder_sha256(copy) == digest


def test_of_three_processes_one_fetches_and_a_killed_one_is_gone_on_from(
    folder: Path, tmp_path: Path
) -> None:
    store = WatchedStore(tmp_path / "store")
    digest = folder_sha256(folder)
    upload_folder_once(store, folder, digest)
    slow = f"models/{sha256_bytes((folder / SHARD).read_bytes())}"
    places = (tmp_path / "store", digest, tmp_path / "cache", slow)
    arrived, never = SPAWN.Event(), SPAWN.Event()
    first = SPAWN.Process(target=fetch, args=(*places, arrived, never))
    # A process that is killed while it waits for an event leaves it unusable to others.
    passed = SPAWN.Event()
    passed.set()
    others = [SPAWN.Process(target=fetch, args=(*places, passed, passed)) for _ in range(2)]
    try:
        first.start()
        assert arrived.wait(60)
        for each in others:
            each.start()
        first.kill()
        first.join()
        assert not (tmp_path / "cache" / "folders" / digest).exists()
        for each in others:
            each.join()
        assert [each.exitcode for each in others] == [0, 0]
    finally:
        for each in (first, *others):
            if each.pid:
                each.kill()
    # Only the window that the kill cut off came twice.
    reads = store.reads()
    assert len(reads) <= len(set(reads)) + 1
