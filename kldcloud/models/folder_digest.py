"""One digest of a model folder: that of a small manifest with the name and digest of every file.

The manifest has what decides logits and tokens and nothing else, so a folder that was renamed,
or has another README, has the same digest; and it is what the store keeps under that digest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kldcloud.errors import FormatError, UserError
from kldcloud.models.bounded_json import parse_json_object
from kldcloud.models.digests import model_sha256
from kldcloud.models.folder_files import CONFIG, TOKENIZER_FILES, WEIGHTS_INDEX, is_shard
from kldcloud.models.model_folder import model_file_names
from kldcloud.store.digest import sha256_bytes

MAX_MANIFEST_BYTES: Final = 4 << 20

_KIND: Final = "kldcloud-model-folder/1"
_MAX_FILE_BYTES = 16 << 40
_MAX_FILES = 8192
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_OTHERS: Final = frozenset({CONFIG, WEIGHTS_INDEX, *TOKENIZER_FILES})


@dataclass(frozen=True, slots=True)
class FolderFile:
    """One file of a model folder.

    Attributes:
        name: in the folder.
        sha256: of its bytes.
        size: in bytes; a chat template may have none.
    """

    name: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class FolderManifest:
    """What a model folder consists of.

    Attributes:
        files: in the order of their names.
    """

    files: tuple[FolderFile, ...]

    @property
    def sha256(self) -> str:
        """The digest of the folder: of what `dump` returns."""
        return sha256_bytes(self.dump())

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def dump(self) -> bytes:
        """The manifest as it is kept, the same bytes for the same files."""
        files = [[file.name, file.sha256, file.size] for file in self.files]
        return json.dumps({"kind": _KIND, "files": files}, separators=(",", ":")).encode() + b"\n"


def folder_sha256(folder: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """The digest of a model folder.

    Args:
        folder: as `read_model_folder` takes it.
        on_bytes: called with the bytes just hashed; never for a file whose digest is remembered.

    Raises:
        UserError: a file cannot be read.
        FormatError: a file is missing.
    """
    return folder_manifest(folder, on_bytes).sha256


def tokenizer_sha256(folder: Path) -> str:
    """The digest of a model folder's tokenizer files alone; errors as of `folder_sha256`."""
    names = [name for name in model_file_names(folder) if name in TOKENIZER_FILES]
    return FolderManifest(tuple(_hashed(folder, name, None) for name in names)).sha256


def folder_manifest(folder: Path, on_bytes: Callable[[int], None] | None = None) -> FolderManifest:
    """Hash the files of a model folder; arguments and errors as of `folder_sha256`."""
    return FolderManifest(
        tuple(_hashed(folder, name, on_bytes) for name in model_file_names(folder))
    )


def _hashed(folder: Path, name: str, on_bytes: Callable[[int], None] | None) -> FolderFile:
    path = folder / name
    digest = model_sha256(path, on_bytes)
    try:
        return FolderFile(name, digest, path.stat().st_size)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def parse_manifest(data: bytes, name: str) -> FolderManifest:
    """Read what `FolderManifest.dump` wrote.

    Args:
        data: at most `MAX_MANIFEST_BYTES`.
        name: of the object, for messages.

    Raises:
        FormatError: it is no manifest, or names anything but a model's files.
    """
    found = parse_json_object(data, name, max_values=_MAX_FILES * 8)
    entries = found.get("files")
    if found.get("kind") != _KIND or not isinstance(entries, list) or len(entries) > _MAX_FILES:
        raise FormatError(f"{name} is not the manifest of a model folder")
    manifest = FolderManifest(tuple(_file(entry, name) for entry in entries))
    names = [file.name for file in manifest.files]
    if names != sorted(set(names)) or not names:
        raise FormatError(
            f"{name} is not the manifest of a model folder: its names are not in order"
        )
    return manifest


def _file(entry: object, name: str) -> FolderFile:
    match entry:
        case [str(file), str(sha256), int(size)] if (
            (file in _OTHERS or is_shard(file))
            and _SHA256.fullmatch(sha256)
            and not isinstance(size, bool)
            and 0 <= size <= _MAX_FILE_BYTES
        ):
            return FolderFile(file, sha256, size)
    raise FormatError(f"{name} names what is no file of a model: {str(entry)[:80]!r}")
