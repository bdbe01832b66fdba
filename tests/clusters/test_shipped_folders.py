"""Folders of safetensors that a job names go ahead of it into the store, each file once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from kldcloud.errors import FormatError, UserError
from kldcloud.models.folder_digest import folder_manifest, folder_sha256
from kldcloud.pipeline.launches import LaunchOrder, read_order, ship, write_order
from kldcloud.pipeline.progress import Silent
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.job import SweepJob
from kldcloud.store.folder import FolderStore
from tests.pipeline.sweeps import TEXT, corpus, facts
from tests.tiny_folders import write_folder

RENTED = ClusterSpec(provider="skypilot", nodes=2)


class WatchedStore(FolderStore):
    """A folder that notes every object that is written."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.written: list[str] = []

    def write_new(self, key: str, data: bytes | memoryview) -> bool:
        self.written.append(key)
        return super().write_new(key, data)

    def write_new_file(self, key: str, path: Path) -> bool:
        self.written.append(key)
        return super().write_new_file(key, path)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path: Path) -> WatchedStore:
    return WatchedStore(tmp_path / "store")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two models with one tokenizer and the same weights, cut in two ways."""
    return write_folder(tmp_path / "base", shards=3), write_folder(tmp_path / "quantised")


def job_of(base: Path, candidates: Iterable[Any]) -> SweepJob:
    return SweepJob.model_validate(facts(base, list(candidates), [corpus()]))


def test_each_file_goes_up_once_and_never_again(
    folders: tuple[Path, Path], store: WatchedStore, tmp_path: Path
) -> None:
    # The second candidate differs in a file that decides nothing.
    copied = tmp_path / "copied"
    shutil.copytree(folders[1], copied)
    (copied / "README.md").write_text("a card of its own")
    job = job_of(folders[0], (folders[1], copied))
    shipped = ship(job, store, Silent())
    *models, text = shipped
    assert [each.uri for each in models] == [str(path) for path in (*folders, copied)]
    assert [each.folder for each in shipped] == [True, True, True, False]
    assert [each.sha256 for each in models] == [folder_sha256(Path(each.uri)) for each in models]
    files = {file.sha256 for path in folders for file in folder_manifest(path).files}
    expected = {f"models/{digest}" for digest in (*files, *(each.sha256 for each in shipped))}
    assert {each.key for each in store.list("")} == expected
    assert text.size == TEXT.stat().st_size
    # The third folder's manifest is asked for once more, and is there.
    assert set(store.written) == expected
    uploads = [key for key in store.written if key != f"models/{models[1].sha256}"]
    assert len(uploads) == len(set(uploads))

    store.written.clear()
    assert ship(job, store, Silent()) == shipped
    assert set(store.written) <= {f"models/{each.sha256}" for each in models}
    assert {each.key for each in store.list("")} == expected


def test_the_machines_read_that_they_are_folders(
    folders: tuple[Path, Path], store: WatchedStore, tmp_path: Path
) -> None:
    job = job_of(folders[0], [folders[1]])
    order = LaunchOrder("kld-x", "s3://b/p", RENTED, ship(job, store, Silent()), 3600.0)
    write_order(tmp_path, order, job)
    again, read = read_order(tmp_path)
    assert (again, read) == (order, job)
    assert [each.folder for each in again.shipped] == [True, True, False]


def test_what_changes_under_way_is_refused_and_leaves_no_manifest(
    folders: tuple[Path, Path], store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, upload = folders[0] / "config.json", WatchedStore.write_new_file

    def changed(self: WatchedStore, key: str, path: Path) -> bool:
        done = upload(self, key, path)
        if path == config:
            config.write_text(config.read_text() + "\n")
            os.utime(config, (1, 1))
        return done

    monkeypatch.setattr(WatchedStore, "write_new_file", changed)
    digest = folder_sha256(folders[0])
    with pytest.raises(UserError, match="changed"):
        ship(job_of(folders[0], [folders[1]]), store, Silent())
    assert store.size(f"models/{digest}") is None


def test_what_does_not_go_together_is_refused_before_anything_is_sent(
    folders: tuple[Path, Path], store: WatchedStore, tmp_path: Path
) -> None:
    base, other = folders
    stranger = write_folder(tmp_path / "stranger", config={"vocab_size": 13})
    with pytest.raises(FormatError, match="vocab_size is 13"):
        ship(job_of(base, [stranger]), store, Silent())
    with pytest.raises(UserError, match=r"llama\.cpp quantises GGUF files"):
        ship(job_of(base, [{"quantize": "Q4_0"}]), store, Silent())
    converted = facts({"model": str(base), "convert": "F16"}, [other], [corpus()])
    with pytest.raises(UserError, match="convert is for GGUF files"):
        ship(SweepJob.model_validate(converted), store, Silent())
    # A repository is never a GGUF, so nothing needs to be asked of the Hub.
    repository = facts({"model": "hf:org/no-such-model"}, [{"quantize": "Q4_0"}], [corpus()])
    with pytest.raises(UserError, match=r"llama\.cpp quantises GGUF files"):
        ship(SweepJob.model_validate(repository), store, Silent())
    assert store.written == []
