"""A committed partial's moments from its last bytes alone: one small read, two of a large shard."""

from __future__ import annotations

from kldcloud.divergence.moments import Moments
from kldcloud.divergence.partial import PartialIdentity
from kldcloud.divergence.partial_footer import TAIL_BYTES, footer_size, read_moments
from kldcloud.store.base import ObjectInfo, Store


def committed_moments(
    store: Store, info: ObjectInfo, identity: PartialIdentity
) -> tuple[Moments, ...]:
    """Read one.

    Args:
        store: where it is.
        info: the object as it was listed.
        identity: whose and which chunks it must be.

    Returns:
        One a chunk, in order; good enough to be shown, see `partial_footer`.

    Raises:
        FormatError: it is not that partial.
        StoreError: the store could not be read.
    """
    tail = _last(store, info, min(info.size, TAIL_BYTES))
    needed = footer_size(tail, size=info.size, chunks=identity.chunk_count, name=info.key)
    footer = tail[-needed:] if needed <= len(tail) else _last(store, info, needed)
    return read_moments(footer, expected=identity, name=info.key)


def _last(store: Store, info: ObjectInfo, count: int) -> bytes:
    buffer = bytearray(count)
    store.read_into(info.key, info.size - count, memoryview(buffer))
    return bytes(buffer)
