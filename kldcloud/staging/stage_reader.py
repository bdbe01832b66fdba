"""Reading a base stage back, chunk by chunk, and believing none of it unchecked."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kldcloud.corpus.chunks import Shard, Tokens
from kldcloud.errors import FormatError
from kldcloud.staging.encodings import Encoding, HiddenEncoding, KldEncoding, LogitsEncoding
from kldcloud.staging.head import NOTHING_AFTER, AfterHead, OutputHead
from kldcloud.staging.shard_file import Frame, parse_header, read_header
from kldcloud.staging.stage import (
    MAX_CHUNKS,
    SCHEMA,
    StageIdentity,
    load_json,
    manifest_key,
)
from kldcloud.staging.states import BLOCK, SUPPORTED_HEADS, bytes_per_state
from kldcloud.store.base import Store
from kldcloud.store.digest import sha256_bytes

MAX_VOCABULARY = 1 << 24
MIN_CONTEXT = 4
MAX_CONTEXT = 1 << 24
MAX_WIDTH = 1 << 20
MAX_FACTOR = 1e6


@dataclass(frozen=True, slots=True)
class _HeadFacts:
    """What a manifest says of the head beside it; as attributes of `OutputHead`."""

    type_name: str
    width: int
    sha256: str
    bias: bool
    after: AfterHead


class StageReader:
    """Reads a whole stage's chunks, verified, into one reused buffer.

    Args:
        store: where the stage is.
        key: the stage's key.
        upto: how many first chunks must be there; None for all.
        threads: for rebuilding logits from hidden states.

    Raises:
        FormatError: if the manifest is not one, or anything it lists is not what it says.
    """

    def __init__(
        self, store: Store, key: str, upto: int | None = None, *, threads: int = 1
    ) -> None:
        self._store = store
        self._key = key
        self._frames: dict[int, tuple[str, Frame]] = {}
        self._buffer = bytearray()
        self._finding = threading.Lock()
        self._threads = threads
        self._encoding: Encoding | None = None
        self.look(upto)

    def look(self, upto: int | None) -> None:
        """Look again at what is there, now that so many first chunks are."""
        self.upto = upto
        name = manifest_key(self._key, upto)
        manifest = load_json(self._store, name)
        try:
            if manifest["schema"] != SCHEMA:
                raise FormatError(
                    f"{name} has schema {manifest['schema']!r}, not {SCHEMA}",
                    hint="a newer kldcloud wrote it: upgrade",
                )
            self.identity = _identity(manifest)
            self._shards = [
                (Shard(int(first), int(count)), int(size), str(sha))
                for first, count, size, sha in manifest["shards"]
            ]
            self._head_facts = _head_facts(manifest["head"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise FormatError(
                f"{name} is not a stage's manifest", hint="delete the stage"
            ) from error
        if self.identity.key != self._key:
            raise FormatError(f"{name} belongs to another stage")

    def tokens(self) -> Tokens:
        """int32 [chunks, n_ctx]."""
        identity = self.identity
        expected = identity.chunks * identity.context * 4
        data = self._store.read(
            f"{identity.prefix}/tokens", sha256=identity.tokens_sha256, limit=expected
        )
        return np.frombuffer(data, "<i4").reshape(identity.chunks, identity.context)

    def frame(self, chunk: int) -> memoryview:
        """One chunk's frame; valid until the next call."""
        key, entry = self._frame_entry(chunk)
        if len(self._buffer) < entry.size:
            self._buffer = bytearray(entry.size)
        return self._read(key, entry, memoryview(self._buffer)[: entry.size])

    def own_frame(self, chunk: int) -> memoryview:
        """One chunk's frame, in memory of its own; for several threads at once."""
        with self._finding:
            key, entry = self._frame_entry(chunk)
        return self._read(key, entry, memoryview(bytearray(entry.size)))

    def _read(self, key: str, entry: Frame, out: memoryview) -> memoryview:
        self._store.read_into(key, entry.offset, out, sha256=entry.sha256)
        return out

    @property
    def encoding(self) -> Encoding:
        """The decoder for this stage's frames; loads the head if there is one."""
        if self._encoding is None:
            self._encoding = make_encoding(self.identity, self._head(), threads=self._threads)
        return self._encoding

    def _frame_entry(self, chunk: int) -> tuple[str, Frame]:
        if chunk not in self._frames:
            for shard, size, header_sha in self._shards:
                if chunk in shard.chunks:
                    key = self.identity.shard_key(shard)
                    header, found = read_header(self._store, key)
                    if sha256_bytes(header) != header_sha or found != size:
                        raise FormatError(
                            f"{key} is not the shard that the manifest lists",
                            hint="delete the stage's folder and run again",
                        )
                    for frame in parse_header(header, shard, size, key):
                        self._frames[frame.chunk] = (key, frame)
        if chunk not in self._frames:
            raise FormatError(f"{self.identity.prefix}: no shard holds chunk {chunk}")
        return self._frames[chunk]

    def _head(self) -> OutputHead | None:
        facts = self._head_facts
        if facts is None:
            return None
        identity = self.identity
        rows = bytes_per_state(facts.type_name, facts.width) * identity.vocabulary
        expected = rows + (4 * identity.vocabulary if facts.bias else 0)
        data = self._store.read(f"{identity.prefix}/head", sha256=facts.sha256, limit=expected)
        if len(data) != expected:
            raise FormatError(f"{identity.prefix}/head has {len(data)} bytes, not {expected}")
        return OutputHead(
            np.frombuffer(data, np.uint8)[:rows],
            facts.type_name,
            facts.width,
            identity.vocabulary,
            np.frombuffer(data, "<f4", offset=rows) if facts.bias else None,
            facts.after,
        )


def make_encoding(
    identity: StageIdentity, head: OutputHead | None, *, threads: int = 1
) -> Encoding:
    """The encoding that an identity names."""
    if identity.encoding == "logits":
        return LogitsEncoding(identity.shape, threads=threads)
    if identity.encoding == "kld":
        return KldEncoding(identity.shape)
    if head is None:
        raise FormatError(f"{identity.prefix}: hidden states without an output head")
    return HiddenEncoding(identity.shape, head, threads=threads)


def _head_facts(entry: Any) -> _HeadFacts | None:  # noqa: ANN401 - whatever JSON holds
    """A manifest's output head."""
    if entry is None:
        return None
    kind, width = str(entry["type"]), int(entry["width"])
    whole_blocks = kind != "Q8_0" or width % BLOCK == 0
    if kind not in SUPPORTED_HEADS or not 0 < width <= MAX_WIDTH or not whole_blocks:
        raise ValueError
    after = NOTHING_AFTER
    if "after" in entry:
        cap = entry["after"]["softcap"]
        after = AfterHead(float(entry["after"]["scale"]), None if cap is None else float(cap))
    factors = [after.scale] if after.softcap is None else [after.scale, after.softcap]
    if not all(0 < abs(each) < MAX_FACTOR for each in factors):
        raise ValueError
    return _HeadFacts(
        kind, width, str(entry["sha256"]), bias=entry.get("bias") is True, after=after
    )


def _identity(manifest: Mapping[str, Any]) -> StageIdentity:
    identity = StageIdentity(
        base_sha256=str(manifest["base_sha256"]),
        tokens_sha256=str(manifest["tokens_sha256"]),
        context=int(manifest["context"]),
        chunks=int(manifest["chunks"]),
        vocabulary=int(manifest["vocabulary"]),
        encoding=str(manifest["encoding"]),
        engine={str(k): str(v) for k, v in manifest["engine"].items()},
    )
    bounded = (
        MIN_CONTEXT <= identity.context <= MAX_CONTEXT
        and 1 <= identity.chunks <= MAX_CHUNKS
        and 1 <= identity.vocabulary <= MAX_VOCABULARY
        and identity.encoding in ("logits", "hidden", "kld")
    )
    if not bounded:
        raise ValueError
    return identity
