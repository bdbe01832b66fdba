"""A model folder has one digest: of what decides its numbers, remembered while nothing changes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from kldcloud.errors import FormatError
from kldcloud.models.folder_digest import folder_manifest, folder_sha256, parse_manifest
from tests.tiny_folders import write_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "own-cache"))


def test_the_digest_is_that_of_names_and_bytes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", shards=2)
    files = [
        [path.name, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size]
        for path in sorted(folder.iterdir())
        if path.name != "README.md"
    ]
    text = json.dumps({"kind": "kldcloud-model-folder/1", "files": files}, separators=(",", ":"))
    assert folder_sha256(folder) == hashlib.sha256(f"{text}\n".encode()).hexdigest()
    assert folder_manifest(folder).size == sum(size for _, _, size in files)


def test_a_second_look_hashes_nothing(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", shards=3)
    told: list[int] = []
    digest = folder_sha256(folder, told.append)
    assert sum(told) == folder_manifest(folder).size
    told.clear()
    assert folder_sha256(folder, told.append) == digest
    assert told == []


def test_a_name_or_a_readme_or_generation_settings_change_nothing(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a")
    digest = folder_sha256(folder)
    (folder / "README.md").write_text("another")
    (folder / "generation_config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert folder_sha256(folder.rename(tmp_path / "b")) == digest


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model-00002-of-00002.safetensors"]
)
def test_a_changed_byte_changes_it(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "a", shards=2)
    digest = folder_sha256(folder)
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    assert folder_sha256(folder) != digest


def test_another_tokenizer_file_changes_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a")
    digest = folder_sha256(folder)
    (folder / "chat_template.jinja").touch()
    assert folder_sha256(folder) != digest


def test_a_manifest_reads_back(tmp_path: Path) -> None:
    manifest = folder_manifest(write_folder(tmp_path / "a", shards=3))
    assert parse_manifest(manifest.dump(), "it") == manifest


GOOD = ["config.json", "0" * 64, 5]


@pytest.mark.parametrize(
    "files",
    [
        [],
        {},
        None,
        [GOOD, GOOD],
        [["model.safetensors", "0" * 64, 5], GOOD],
        [["../config.json", "0" * 64, 5]],
        [["/etc/passwd", "0" * 64, 5]],
        [["module.py", "0" * 64, 5]],
        [["config.json", "0" * 63, 5]],
        [["config.json", "../" * 21 + "0", 5]],
        [["config.json", "0" * 64, -1]],
        [["config.json", "0" * 64, True]],
        [["config.json", "0" * 64, 1 << 60]],
        [["config.json", "0" * 64, "5"]],
        [["config.json", "0" * 64]],
        ["config.json"],
        [[f"m-{each:05}.safetensors", "0" * 64, 5] for each in range(9000)],
    ],
)
def test_a_manifest_that_names_anything_else_is_refused(files: object) -> None:
    data = json.dumps({"kind": "kldcloud-model-folder/1", "files": files}).encode()
    with pytest.raises(FormatError, match=r"^models/x in here "):
        parse_manifest(data, "models/x in here")


@pytest.mark.parametrize("data", [b"", b"GGUF", b"{}", b'{"kind": "other", "files": []}'])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="models/x"):
        parse_manifest(data, "models/x")
