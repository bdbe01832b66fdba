"""A folder of safetensors that a job names, on whatever machine: the very one, or none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kldcloud.errors import FormatError, StoreError
from kldcloud.models.folder_copy import upload_folder_once
from kldcloud.models.folder_digest import folder_sha256
from kldcloud.models.model_folder import model_file_names, read_model_folder
from kldcloud.pipeline import sources
from kldcloud.pipeline.progress import Silent
from kldcloud.pipeline.sources import ShippedFile, Sources, local_copy
from kldcloud.pipeline.tasks import ModelRef
from kldcloud.spec.uri import SourceUri, parse_uri
from kldcloud.store import Store, open_store
from tests.tiny_folders import write_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model", shards=3)


def reference(folder: Path, origin: str = "") -> ModelRef:
    size = read_model_folder(folder).tensor_bytes
    return ModelRef(folder, folder_sha256(folder), size, origin, folder=True)


def found(model: ModelRef, store: Store) -> Path:
    return local_copy(model, store, lambda _done, _total: None)


def same_files(one: Path, other: Path) -> bool:
    names = model_file_names(one)
    return names == model_file_names(other) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


def another(folder: Path, target: Path) -> Path:
    """The same model with another tokenizer, which decides what its numbers are."""
    shutil.copytree(folder, target)
    (target / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    return target


def test_what_went_ahead_is_fetched_from_the_store(store: Store, folder: Path) -> None:
    model, uri = reference(folder), parse_uri(str(folder))
    upload_folder_once(store, folder, model.sha256)
    ahead = ShippedFile(str(uri), model.sha256, model.size, folder=True)
    shipped = Sources(store, {str(uri): ahead})
    copy = shipped.fetch_model(uri, Silent())
    assert copy != folder
    assert same_files(copy, folder)
    assert shipped.origin(uri, copy) == ""
    # Whatever lies there by that name on this machine.
    assert Sources().fetch_model(uri, Silent()) == folder


def test_a_folder_that_is_the_very_one_is_taken_as_it_is(
    store: Store, folder: Path, own_cache: Path
) -> None:
    model = reference(folder)
    (folder / "README.md").write_text("says something else now")
    assert found(model, store) == folder
    assert not (own_cache / "folders").exists()


@pytest.mark.parametrize("there", ["nothing", "another", "a shard less", "a file"])
def test_else_the_stores_copy_is(store: Store, folder: Path, tmp_path: Path, there: str) -> None:
    model = reference(folder)
    upload_folder_once(store, folder, model.sha256)
    kept = tmp_path / "kept"
    folder.rename(kept)
    if there == "another":
        another(kept, folder)
    elif there == "a shard less":
        shutil.copytree(kept, folder)
        (folder / "model-00002-of-00003.safetensors").unlink()
    elif there == "a file":
        folder.write_text("GGUF")
    copy = found(model, store)
    assert copy != folder
    assert same_files(copy, kept)
    # A driver that runs where it was shipped to names the copy in its cache.
    assert found(reference(copy), store) == copy


def test_a_copy_in_the_cache_that_was_damaged_is_mended(store: Store, folder: Path) -> None:
    model = reference(folder)
    upload_folder_once(store, folder, model.sha256)
    shutil.move(folder, folder.with_name("gone"))
    copy = found(model, store)
    shard = (copy / "model-00002-of-00003.safetensors").resolve()
    shard.write_bytes(bytes(shard.stat().st_size))
    assert same_files(found(reference(folder.with_name("gone")), store), folder.with_name("gone"))
    assert found(ModelRef(copy, model.sha256, model.size, folder=True), store) == copy
    assert same_files(copy, folder.with_name("gone"))


def test_a_store_without_it_is_told_in_one_line(store: Store, folder: Path) -> None:
    model = reference(folder)
    shutil.rmtree(folder)
    with pytest.raises(StoreError, match=f"no object models/{model.sha256}"):
        found(model, store)


def test_a_repository_is_fetched_at_the_commit_that_the_driver_had(
    store: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "hub" / COMMIT
    shutil.copytree(folder, there)
    asked: list[SourceUri] = []

    def fetch(uri: SourceUri, **_: object) -> Path:
        asked.append(uri)
        return there

    monkeypatch.setattr(sources, "fetch_model", fetch)
    repository = parse_uri("hf:org/model")
    origin = Sources().origin(repository, there)
    assert origin == f"hf:org/model@{COMMIT}"
    elsewhere = ModelRef(tmp_path / "none", folder_sha256(folder), 1, origin, folder=True)
    assert found(elsewhere, store) == there
    assert [(uri.container, uri.revision) for uri in asked] == [("org/model", COMMIT)]
    another(folder, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "tokenizer.json", there / "tokenizer.json")
    with pytest.raises(FormatError, match=f"{COMMIT} is not the model that this run began with"):
        found(elsewhere, store)
