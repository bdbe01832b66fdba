"""What every store promises: the one seam between the pipeline and where bytes are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One listed object: its key and its size in bytes."""

    key: str
    size: int


@dataclass(frozen=True, slots=True)
class StoreProbe:
    """What a try-out on a throw-away key showed: one sentence a finding, in the order tried."""

    ok: bool
    findings: tuple[str, ...]


class Store(Protocol):
    """Objects under keys such as `runs/ab12/partials/q4/00000.parquet`.

    A key is relative, its parts are separated by single slashes, and each part starts with a
    letter, a digit or an underscore (see `kldcloud.store.keys`). Any other key is a StoreError.
    Methods may be called from several threads. Every method raises StoreError for a store that
    cannot be reached, read or written.
    """

    uri: str
    """What a person typed, normalised: `open_store(uri)` opens the same store elsewhere."""

    def read(self, key: str, *, sha256: str | None = None, limit: int | None = None) -> bytes:
        """Return the whole object.

        Args:
            key: which object.
            sha256: the digest (64 hex digits) that the bytes must have. Without it, S3 still holds
                an object to the digest that was kept beside it when it was written in one request.
            limit: refuse an object of more bytes than this, before reading it.

        Raises:
            StoreError: there is no such object.
            FormatError: the digest differs, or the object is larger than `limit`.
        """
        ...

    def read_into(
        self, key: str, start: int, out: memoryview, *, sha256: str | None = None
    ) -> None:
        """Fill `out` (writable, contiguous) with its length in bytes, from byte `start`.

        A large range is fetched from S3 as several requests at once, straight into `out`.

        Args:
            key: which object.
            start: offset of the first byte.
            out: the caller's buffer; its content is undefined after an error.
            sha256: the digest (64 hex digits) of the range.

        Raises:
            StoreError: there is no such object.
            FormatError: the object ends before the range does, or the digest differs.
        """
        ...

    def size(self, key: str) -> int | None:
        """Return the object's size in bytes, or None if there is no such object."""
        ...

    def write_new(self, key: str, data: bytes | memoryview) -> bool:
        """Create the object, whole or not at all; never replace one.

        What arrives damaged is refused by the server and sent again.

        Returns:
            True if this call created it. False if the key was taken, whatever it holds: the
            first writer wins. After a lost reply the object in the way may be this call's own.
        """
        ...

    def write_new_file(self, key: str, path: Path) -> bool:
        """As `write_new`, from a local file that need not fit in memory."""
        ...

    def write(self, key: str, data: bytes) -> None:
        """Create or replace the object. Not for results: heartbeats, re-rendered reports."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Return the objects whose key starts with `prefix` ("" for all), sorted by key.

        Files that no key can name (hidden ones, odd characters) are passed over.
        """
        ...

    def delete(self, key: str) -> None:
        """Delete the object; nothing happens if there is none."""
        ...

    def probe(self) -> StoreProbe:
        """Try on throw-away keys what a run relies on, and remove them."""
        ...
