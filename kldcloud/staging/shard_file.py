"""A shard object of a base stage: a header that lists its frames with digests, then the frames.

Layout, little-endian: 8 bytes magic, uint32 length of the header, its SHA-256, the header as
JSON, the frames one after the other. One frame is one chunk, so a worker whose shards are cut
differently reads just the chunks it needs. The manifest holds the header's digest, the header each
frame's.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from kldcloud.corpus.chunks import Shard
from kldcloud.errors import FormatError
from kldcloud.store.base import Store
from kldcloud.store.digest import sha256_bytes

MAGIC = b"KLDSTAG2"
PREFIX = struct.Struct("<8sI32s")
MAX_HEADER_BYTES = 1 << 20
MAX_FRAME_BYTES = 1 << 36


@dataclass(frozen=True, slots=True)
class Frame:
    """Where one chunk's frame lies in its object, and what it must hash to."""

    chunk: int
    offset: int
    size: int
    sha256: str


def build_shard(shard: Shard, frames: Sequence[bytes]) -> bytes:
    """The whole object."""
    entries = []
    offset = 0
    for chunk, frame in zip(shard.chunks, frames, strict=True):
        entries.append([chunk, offset, len(frame), sha256_bytes(frame)])
        offset += len(frame)
    header = json.dumps({"frames": entries}, separators=(",", ":")).encode()
    prefix = PREFIX.pack(MAGIC, len(header), bytes.fromhex(sha256_bytes(header)))
    return b"".join([prefix, header, *frames])


def read_header(store: Store, key: str) -> tuple[bytes, int]:
    """The header's bytes and the object's size.

    What is read here decides what a manifest says for good, so the header has a digest of its own.

    Raises:
        FormatError: if the object is no shard.
    """
    size = store.size(key)
    prefix = bytearray(PREFIX.size)
    if size is None or size < PREFIX.size:
        raise FormatError(f"{key}: missing or cut short", hint=_AGAIN)
    store.read_into(key, 0, memoryview(prefix))
    magic, length, digest = PREFIX.unpack(prefix)
    if magic != MAGIC or length > min(MAX_HEADER_BYTES, size - PREFIX.size):
        raise FormatError(f"{key}: not a shard of a base stage", hint=_AGAIN)
    header = bytearray(length)
    store.read_into(key, PREFIX.size, memoryview(header), sha256=digest.hex())
    return bytes(header), size


def parse_header(header: bytes, shard: Shard, size: int, key: str) -> list[Frame]:
    """The frames of a shard, checked against what the object can hold.

    Raises:
        FormatError: if the header does not list exactly the shard's chunks, back to back.
    """
    start = PREFIX.size + len(header)
    frames: list[Frame] = []
    try:
        for chunk, (number, offset, length, digest) in zip(
            shard.chunks, json.loads(header)["frames"], strict=True
        ):
            at = frames[-1].offset + frames[-1].size if frames else start
            whole = type(length) is int and 0 <= length <= MAX_FRAME_BYTES
            if number != chunk or offset + start != at or not whole:
                raise ValueError  # noqa: TRY301 - one refusal for every way to be wrong
            frames.append(Frame(chunk, at, length, str(digest)))
        if frames[-1].offset + frames[-1].size != size:
            raise ValueError  # noqa: TRY301
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"{key}: its header does not fit its content", hint=_AGAIN) from error
    return frames


_AGAIN = "delete the stage's folder and run the same command again"
