"""The moments of a partial from its last bytes alone: a few KB instead of all token records.

Good enough for what is shown on the way, not for a result: the digest that a partial carries
covers its records, so only a reader of the whole object can check it.
"""

from __future__ import annotations

from kldcloud.divergence.moments import Moments
from kldcloud.divergence.partial import (
    IDENTITY_KEY,
    MOMENTS_KEY,
    PartialIdentity,
    decode_identity,
    decode_moments,
)
from kldcloud.errors import FormatError

TAIL_BYTES = 16 << 10
"""Holds the footer of a shard of 8 chunks, the most that a run cuts by itself (12 KB)."""
_END = b"PAR1"
_TRAILER = 4 + len(_END)
# A chunk's moments and llama.cpp sums take 600 bytes; histogram, schema and the rest are bounded.
_MOST_BYTES = 1 << 20
_MOST_BYTES_A_CHUNK = 1 << 10


def footer_size(tail: bytes, *, size: int, chunks: int, name: str) -> int:
    """How many of a partial's last bytes `read_moments` needs.

    Args:
        tail: its last bytes, 8 at least.
        size: of the whole object in bytes.
        chunks: in its shard.
        name: what errors call the object.

    Raises:
        FormatError: it does not end as Parquet does, or claims more than its shard explains.
    """
    if len(tail) < _TRAILER or not tail.endswith(_END):
        raise FormatError(f"{name}: does not end as Parquet does")
    needed = int.from_bytes(tail[-_TRAILER : -len(_END)], "little") + _TRAILER
    if needed > min(size, _MOST_BYTES + _MOST_BYTES_A_CHUNK * chunks):
        raise FormatError(f"{name}: claims a footer of {needed} bytes for {chunks} chunks")
    return needed


def read_moments(footer: bytes, *, expected: PartialIdentity, name: str) -> tuple[Moments, ...]:
    """A partial's moments, one a chunk.

    Args:
        footer: its last bytes, as many as `footer_size` said.
        expected: whose and which chunks they must be.
        name: what errors call the object.

    Raises:
        FormatError: not the footer of that partial.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Parquet is read from its end: a buffer that begins at the footer serves as well.
        file = pq.ParquetFile(pa.BufferReader(footer)).metadata
        metadata = file.metadata or {}
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FormatError(f"{name}: not readable as Parquet: {reason}") from error
    facts = [metadata.get(key.encode()) for key in (IDENTITY_KEY, MOMENTS_KEY)]
    if facts[0] is None or facts[1] is None:
        raise FormatError(f"{name}: token records without identity or moments")
    found = decode_identity(facts[0], name)
    if found != expected:
        raise FormatError(f"{name}: is the {found}, not the {expected}")
    moments = decode_moments(facts[1], found, name)
    counts = [item.count for item in moments]
    if min(counts) < 1 or sum(counts) != file.num_rows:
        raise FormatError(f"{name}: its moments do not count its records")
    return moments
