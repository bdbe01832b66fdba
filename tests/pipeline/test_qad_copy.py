"""What other machines trained arrives where a person wants it, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kldcloud.errors import StoreError, UserError
from kldcloud.pipeline.progress import Silent
from kldcloud.pipeline.qad_copy import (
    check_place,
    copy_folder_from_store,
    copy_from_store,
    copy_here,
)
from kldcloud.spec.qad_job import ExportSpec
from kldcloud.store import open_store
from kldcloud.store.digest import sha256_bytes
from tests.report.summaries import as_summary, summary_dict

DATA = b"a student" * 1000


def test_a_file_is_found_by_the_digest_that_the_sweep_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "cache"))
    store = open_store(str(tmp_path / "store"))
    facts = summary_dict()
    student = facts["candidates"][0]
    student |= {"sha256": sha256_bytes(DATA), "bytes": len(DATA)}
    target = tmp_path / "out" / "student.gguf"
    with pytest.raises(StoreError, match="no object models/"):
        copy_from_store(store, as_summary(facts), student["name"], target, Silent())
    store.write_new(f"models/{student['sha256']}", DATA)
    copy_from_store(store, as_summary(facts), student["name"], target, Silent())
    assert target.read_bytes() == DATA
    with pytest.raises(StoreError, match="does not say which file nobody is"):
        copy_from_store(store, as_summary(facts), "nobody", target, Silent())


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_not_a_file_is_never_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    source, target = tmp_path / "student.gguf", tmp_path / "there"
    source.write_bytes(DATA)
    make(target)
    before = target.lstat()
    with pytest.raises(UserError, match="there is not a file; the store has it"):
        copy_here(source, target, Silent())
    assert target.lstat() == before


def test_a_folder_comes_file_by_file(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    for name in ("config.json", "model.safetensors"):
        store.write_new(f"qad/x-1/student/{name}", name.encode() + DATA)
    target = tmp_path / "out"
    for _ in range(2):
        copy_folder_from_store(store, "qad/x-1/student", target, Silent())
        found = {each.name: each.read_bytes() for each in target.iterdir()}
        assert found == {
            name: name.encode() + DATA for name in ("config.json", "model.safetensors")
        }


def test_a_place_that_cannot_be_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file, folder = tmp_path / "file", tmp_path / "folder.gguf"
    file.write_bytes(b"")
    folder.mkdir()
    for good in (Path("new.gguf"), folder / "a" / "b.gguf"):
        check_place(ExportSpec(to="gguf", path=good))
    for good in (tmp_path, Path("new"), folder / "a" / "b"):
        check_place(ExportSpec(to="hf", path=good))
    assert sorted(tmp_path.rglob("*")) == [file, folder]
    with pytest.raises(UserError, match=r"folder\.gguf is not a file"):
        check_place(ExportSpec(to="gguf", path=folder))
    with pytest.raises(UserError, match="file is not a folder"):
        check_place(ExportSpec(to="hf", path=file))
    for kind, name in (("gguf", "b.gguf"), ("hf", "b")):
        with pytest.raises(UserError, match=r"/file is not a folder; give export\.path another"):
            check_place(ExportSpec(to=kind, path=file / "a" / name))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"folder\.gguf cannot be written to"):
        check_place(ExportSpec(to="gguf", path=folder / "b.gguf"))
