"""An object as an open file, for libraries that want one and read little of it."""

from __future__ import annotations

import io
import os

from kldcloud.store.base import ObjectInfo, Store


class ObjectFile(io.RawIOBase):
    """Reads ranges of an object as they are asked for; nothing is kept.

    Args:
        store: where it is.
        info: the object as it was listed.
    """

    def __init__(self, store: Store, info: ObjectInfo) -> None:
        super().__init__()
        self._store = store
        self._info = info
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._info.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill the buffer, or what of it the object still has bytes for.

        Raises:
            StoreError: the object could not be read.
        """
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._info.size - self._at))
        if count:
            self._store.read_into(self._info.key, self._at, view[:count])
            self._at += count
        return count
