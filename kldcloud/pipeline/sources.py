"""Where a launch finds models and texts: where the job says, or in the store, by digest.

A job names files as the machine that launched it sees them. On other machines the same names mean
objects `models/<sha256>` of the store, which that machine uploaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from kldcloud.errors import FormatError, UserError
from kldcloud.models.cache import cache_dir, cache_folder
from kldcloud.models.digests import model_sha256, remember_sha256
from kldcloud.models.folder_copy import fetch_folder
from kldcloud.models.folder_digest import folder_sha256
from kldcloud.models.sources import decode_text, fetch, fetch_model, pinned, read_text
from kldcloud.models.store_copy import cached_copy
from kldcloud.pipeline.progress import Bar, Progress
from kldcloud.pipeline.tasks import ModelRef
from kldcloud.qad.whole_file import whole_file, written
from kldcloud.spec.uri import SourceUri, parse_uri
from kldcloud.store.base import Store
from kldcloud.store.digest import sha256_bytes

FETCHED_ANYWHERE = ("hf", "s3")
"""Schemes that mean the same file on every machine."""


@dataclass(frozen=True, slots=True)
class ShippedFile:
    """A file that went ahead into the store.

    Attributes:
        uri: what the job calls it.
        sha256: of its bytes.
        size: in bytes.
        folder: whether it is a folder of safetensors, by its digest.
    """

    uri: str
    sha256: str
    size: int
    folder: bool = False


@dataclass(frozen=True, slots=True)
class Sources:
    """How this process finds what a job names.

    Attributes:
        store: where shipped files are.
        shipped: by the URI that the job has.
    """

    store: Store | None = None
    shipped: Mapping[str, ShippedFile] = field(default_factory=dict)

    def fetch(self, uri: SourceUri, progress: Progress) -> Path:
        """The path of a file on this machine."""
        with _bar(uri, progress) as bar:
            there = self.shipped.get(str(uri))
            if there is None or self.store is None:
                return fetch(uri, cache=cache_dir(), progress=bar.reach)
            return self._copy(there, bar)

    def fetch_model(self, uri: SourceUri, progress: Progress) -> Path:
        """The path of a model on this machine: a file, or a folder of safetensors."""
        with _bar(uri, progress) as bar:
            there = self.shipped.get(str(uri))
            if there is None or self.store is None:
                return fetch_model(uri, cache=cache_dir(), progress=bar.reach)
            if there.folder:
                return fetch_folder(self.store, there.sha256, cache=cache_dir(), progress=bar.reach)
            return self._copy(there, bar)

    def read_text(self, uri: SourceUri, progress: Progress) -> str:
        """A text, exactly as it is."""
        with _bar(uri, progress) as bar:
            there = self.shipped.get(str(uri))
            if there is None or self.store is None:
                return read_text(uri, cache=cache_dir(), progress=bar.reach)
            return decode_text(self._copy(there, bar).read_bytes(), str(uri))

    def text_file(self, uri: SourceUri, progress: Progress) -> Path:
        """The path of a text on this machine, which nobody has read yet."""
        if uri.scheme == "builtin":
            return _builtin_file(self.read_text(uri, progress))
        return self.fetch(uri, progress)

    def origin(self, uri: SourceUri, path: Path) -> str:
        """What other machines can fetch it from; empty if only the store has it for them.

        Args:
            uri: what the job calls it.
            path: where it is here.
        """
        if str(uri) in self.shipped or uri.scheme not in FETCHED_ANYWHERE:
            return ""
        return str(pinned(uri, path))

    def _copy(self, there: ShippedFile, bar: Bar) -> Path:
        assert self.store is not None  # noqa: S101 - both callers have asked
        return _from_store(self.store, there.sha256, there.size, bar.reach)


def _builtin_file(text: str) -> Path:
    """A text that comes with this Python, as a file of the cache."""
    data = text.encode()
    path = cache_folder("texts", "texts") / sha256_bytes(data)
    if not path.exists():
        with whole_file(path) as part, written(path):
            part.write_bytes(data)
    return path


HERE = Sources()
"""Every name in a job means what it means on this machine."""


def local_copy(model: ModelRef, store: Store, progress: Callable[[int, int], None]) -> Path:
    """A model on this machine, fetched if it is not here, and the very one that the driver meant.

    Raises:
        FormatError: if its origin has another file by now.
    """
    if model.folder:
        return _local_folder(model, store, progress)
    # What lies in this cache was checked when it came, by one process for all of the machine's.
    kept_here = model.path.is_relative_to(cache_dir() / "models")
    if not kept_here and _is_it(model, model.path):
        return model.path
    if not model.origin:
        return _from_store(store, model.sha256, model.size, progress)
    path = fetch(parse_uri(model.origin), cache=cache_dir(), progress=progress)
    if not _is_it(model, path):
        raise _another(model)
    return path


def _local_folder(model: ModelRef, store: Store, progress: Callable[[int, int], None]) -> Path:
    kept_here = model.path.is_relative_to(cache_dir() / "folders")
    if not kept_here and _is_folder(model, model.path):
        return model.path
    if not model.origin:
        return fetch_folder(store, model.sha256, cache=cache_dir(), progress=progress)
    path = fetch_model(parse_uri(model.origin), cache=cache_dir(), progress=progress)
    if not _is_folder(model, path):
        raise _another(model)
    return path


def _is_folder(model: ModelRef, path: Path) -> bool:
    try:
        return folder_sha256(path) == model.sha256
    except UserError:
        return False


def _another(model: ModelRef) -> FormatError:
    return FormatError(
        f"{model.origin} is not the model that this run began with",
        hint="name a revision in the job, and launch it again",
    )


def _from_store(store: Store, sha256: str, size: int, progress: Callable[[int, int], None]) -> Path:
    path = cached_copy(store, sha256, size, cache=cache_dir(), progress=progress)
    remember_sha256(path, sha256)
    return path


def _is_it(model: ModelRef, path: Path) -> bool:
    try:
        if path.stat().st_size != model.size:
            return False
        return model_sha256(path) == model.sha256
    except (OSError, UserError):
        return False


def _bar(uri: SourceUri, progress: Progress) -> AbstractContextManager[Bar]:
    return progress.bar(f"fetching {uri.filename}", 0)
