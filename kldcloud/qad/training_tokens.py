"""Training chunks: written to a file as they are made, kept in the store, mapped where they train.

The object is `tokens.bin` in the run's folder, int32 little-endian [chunks, context] and nothing
else; `tokens.json` beside it says so. What a training process is told is the key and the digest.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from kldcloud.corpus.chunks import check_length
from kldcloud.errors import FormatError, StoreError
from kldcloud.models.cache import cache_dir, cache_folder
from kldcloud.models.digests import model_sha256
from kldcloud.models.part_file import sweep_parts
from kldcloud.models.store_copy import cached_object
from kldcloud.staging.stage import agree_on_json
from kldcloud.store.base import Store
from kldcloud.store.folder import FolderStore

SCHEMA: Final = "kldcloud.tokens/1"
_FOLDER: Final = "tokens"
_AGAIN: Final = "delete it, and launch the job again"

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TokenFile:
    """Chunks in a file of this machine.

    Attributes:
        path: of the file; int32 little-endian [chunks, context].
        chunks: how many, 1 or more.
        context: tokens in a chunk.
        sha256: of the file.
    """

    path: Path
    chunks: int
    context: int
    sha256: str

    def open(self) -> Tokens:
        """int32 [chunks, context], mapped."""
        return _mapped(self.path, self.chunks, self.context)


@dataclass(frozen=True, slots=True)
class KeptTokens:
    """Chunks in a store.

    Attributes:
        key: of the object.
        chunks: as `TokenFile`.
        context: as `TokenFile`.
        sha256: of the object.
    """

    key: str
    chunks: int
    context: int
    sha256: str

    @property
    def size(self) -> int:
        """Bytes."""
        return 4 * self.chunks * self.context


def write_tokens(
    parts: Iterable[Tokens], context: int, limit: int | Literal["all"], bos: int | None
) -> TokenFile:
    """Cut a text into chunks as `cut_chunks` does, with no more of it in memory than a part.

    Args:
        parts: int32 [n] each, the text; no more of them are asked for than are needed.
        context: tokens in a chunk.
        limit: at most this many chunks, 1 or more.
        bos: what every chunk begins with, in place of its first token; None for nothing.

    Raises:
        UserError: the text has fewer than two chunks.
        StoreError: the cache cannot be written.
    """
    path = cache_folder(_FOLDER, "training tokens") / f"{uuid.uuid4().hex}.part"
    sweep_parts(path)
    digest, counted, chunks = hashlib.sha256(), 0, 0
    rest = np.empty(0, np.int32)
    try:
        with _written(path), path.open("wb") as file:
            for part in parts:
                counted += len(part)
                rest = np.concatenate([rest, part])
                whole = len(rest) // context
                wanted = whole if limit == "all" else min(whole, limit - chunks)
                block = rest[: wanted * context].reshape(wanted, context).astype("<i4")
                rest = rest[whole * context :]
                if bos is not None:
                    block[:, 0] = bos
                digest.update(block.data)
                file.write(block.data)
                chunks += wanted
                # A text of less than two chunks is refused, however few are wanted.
                if chunks == limit and counted >= 2 * context:
                    break
        check_length(counted, context)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return TokenFile(path, chunks, context, digest.hexdigest())


def reference(prefix: str, file: TokenFile) -> KeptTokens:
    """What a run calls its training chunks."""
    return KeptTokens(f"{prefix}/tokens.bin", file.chunks, file.context, file.sha256)


def keep_tokens(store: Store, kept: KeptTokens, path: Path) -> None:
    """Put the chunks into the store, unless an earlier launch has; this takes their file away.

    Args:
        store: where training processes look.
        kept: what they are told.
        path: the file; those that train on this machine find it, wherever it has gone.

    Raises:
        FormatError: the store has something else there.
        StoreError: the store failed.
    """
    facts = {"schema": SCHEMA, "dtype": "<i4", **asdict(kept)}
    if store.size(kept.key) is None:
        store.write_new_file(kept.key, path)
    _check_size(store, kept)
    about = f"{kept.key.removesuffix('.bin')}.json"
    if agree_on_json(store, about, facts) != facts:
        raise FormatError(
            f"{about} in {store.uri} is about other chunks than this run trains on", hint=_AGAIN
        )
    with _written(path):
        if isinstance(store, FolderStore):
            path.unlink()
        else:
            path.replace(_copies() / kept.sha256)


def open_tokens(
    kept: KeptTokens, store: Store, progress: Callable[[int, int], None] | None = None
) -> Tokens:
    """Map the chunks: where they lie if that is a folder, else a copy, fetched once a machine.

    Args:
        kept: which.
        store: that has them.
        progress: called with bytes done and in all, while they are fetched.

    Returns:
        int32 [chunks, context], read-only.

    Raises:
        FormatError: other bytes than were kept.
        StoreError: no such object, or no room for the copy.
    """
    if isinstance(store, FolderStore):
        path = store.path(kept.key)
        _check_size(store, kept)
        found = model_sha256(path)
        if found != kept.sha256:
            raise FormatError(
                f"{kept.key} in {store.uri} has SHA-256 {found[:16]}..., not {kept.sha256[:16]}...:"
                " it was changed or damaged",
                hint=_AGAIN,
            )
    else:
        path = cached_object(
            store, kept.key, kept.sha256, kept.size, folder=_copies(), progress=progress
        )
    return _mapped(path, kept.chunks, kept.context)


def _check_size(store: Store, kept: KeptTokens) -> None:
    found = store.size(kept.key)
    if found != kept.size:
        raise FormatError(
            f"{kept.key} in {store.uri} has {found or 0:,} bytes, not the {kept.size:,} of"
            f" {kept.chunks:,} chunks of {kept.context:,} tokens",
            hint=_AGAIN,
        )


def _mapped(path: Path, chunks: int, context: int) -> Tokens:
    return np.memmap(path, np.dtype("<i4"), "r", shape=(chunks, context))


def _copies() -> Path:
    return cache_dir() / _FOLDER


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path.parent}: cannot keep training tokens there: {error.strerror or error}",
            hint="set KLDCLOUD_CACHE to a folder with room",
        ) from error
