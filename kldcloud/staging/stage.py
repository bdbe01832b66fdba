"""A base stage in a store: its identity, its objects, and reading it back chunk by chunk.

stages/<key>/plan.json         how it is cut into shards; the first to stage decides
stages/<key>/<shard>.shard     frames, committed by workers
stages/<key>/tokens, head      what reading needs beside frames
stages/<key>/manifest.json     committed last: the stage is whole, and these are its digests
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kldcloud.corpus.chunks import ChunkShape, Shard, Tokens, cut_shards
from kldcloud.errors import FormatError
from kldcloud.staging.encodings import (
    Encoding,
    HiddenEncoding,
    KldEncoding,
    LogitsEncoding,
    StageShape,
)
from kldcloud.staging.head import OutputHead
from kldcloud.staging.shard_file import Frame, build_shard, parse_header, read_header
from kldcloud.staging.states import BLOCK, SUPPORTED_HEADS, bytes_per_state
from kldcloud.store.base import Store
from kldcloud.store.digest import sha256_bytes

SCHEMA = "kldcloud.stage/2"
MAX_JSON_BYTES = 64 << 20
MAX_CHUNKS = 1 << 24
MAX_VOCABULARY = 1 << 24
MIN_CONTEXT = 4
MAX_CONTEXT = 1 << 24
MAX_WIDTH = 1 << 20


@dataclass(frozen=True, slots=True)
class StageIdentity:
    """All that determines a stage's content.

    Attributes:
        base_sha256: digest of the base model's file (or of the .kld file it came from).
        tokens_sha256: digest of the chunks' tokens as int32.
        context: tokens a chunk.
        chunks: how many.
        vocabulary: V.
        encoding: logits, hidden or kld.
        engine: the engine's fingerprint; empty for an imported file.
    """

    base_sha256: str
    tokens_sha256: str
    context: int
    chunks: int
    vocabulary: int
    encoding: str
    engine: Mapping[str, str]

    @property
    def key(self) -> str:
        return sha256_bytes(canonical_json({"schema": SCHEMA, **asdict(self)}))[:32]

    @property
    def prefix(self) -> str:
        return f"stages/{self.key}"

    @property
    def shape(self) -> StageShape:
        return StageShape(ChunkShape(self.context).rows, self.vocabulary)

    def shard_key(self, shard: Shard) -> str:
        return f"{self.prefix}/{shard.label}.shard"


def canonical_json(value: object) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def tokens_bytes(chunks: Tokens) -> bytes:
    """Chunks as the store keeps them: int32, little-endian."""
    return np.ascontiguousarray(chunks, "<i4").tobytes()


def agree_on_json(store: Store, key: str, proposal: object) -> Any:  # noqa: ANN401
    """Propose a small JSON object under a create-only key; return what stands there."""
    store.write_new(key, canonical_json(proposal))
    return load_json(store, key)


def load_json(store: Store, key: str) -> Any:  # noqa: ANN401
    """A JSON object from the store.

    Raises:
        FormatError: if it is not JSON.
    """
    try:
        return json.loads(store.read(key, limit=MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{key}: not valid JSON", hint="delete it and run again") from error


def stage_shards(store: Store, identity: StageIdentity, proposed_size: int) -> list[Shard]:
    """How this stage is cut: as whoever staged first decided."""
    plan = agree_on_json(store, f"{identity.prefix}/plan.json", {"shard_chunks": proposed_size})
    size = plan.get("shard_chunks") if isinstance(plan, dict) else None
    if not isinstance(size, int) or not 1 <= size <= MAX_CHUNKS:
        raise FormatError(f"{identity.prefix}/plan.json: no shard size", hint="delete the stage")
    return list(cut_shards(identity.chunks, size))


def write_shard(
    store: Store, identity: StageIdentity, shard: Shard, frames: Sequence[bytes]
) -> None:
    """Commit one shard; a second commit of the same shard changes nothing."""
    store.write_new(identity.shard_key(shard), build_shard(shard, frames))


def is_complete(store: Store, identity: StageIdentity) -> bool:
    """Whether the stage is whole and can be measured against."""
    return store.size(f"{identity.prefix}/manifest.json") is not None


def finish_stage(
    store: Store,
    identity: StageIdentity,
    shards: Sequence[Shard],
    chunks: Tokens,
    head: OutputHead | None,
) -> None:
    """Commit tokens, head and manifest over shards that are all committed."""
    tokens = tokens_bytes(chunks)
    store.write_new(f"{identity.prefix}/tokens", tokens)
    head_facts = None
    if head is not None:
        store.write_new(f"{identity.prefix}/head", head.data.data)
        head_facts = {
            "type": head.type_name,
            "width": head.width,
            "sha256": sha256_bytes(head.data.data),
        }
    entries = []
    for shard in shards:
        key = identity.shard_key(shard)
        header, size = read_header(store, key)
        parse_header(header, shard, size, key)
        entries.append([shard.first, shard.count, size, sha256_bytes(header)])
    manifest = {
        "schema": SCHEMA,
        **asdict(identity),
        "key": identity.key,
        "head": head_facts,
        "shards": entries,
    }
    store.write_new(f"{identity.prefix}/manifest.json", canonical_json(manifest))


class StageReader:
    """Reads a whole stage's chunks, verified, into one reused buffer.

    Args:
        store: where the stage is.
        key: the stage's key.
        threads: for rebuilding logits from hidden states.

    Raises:
        FormatError: if the manifest is not one, or anything it lists is not what it says.
    """

    def __init__(self, store: Store, key: str, *, threads: int = 1) -> None:
        self._store = store
        prefix = f"stages/{key}"
        manifest = load_json(store, f"{prefix}/manifest.json")
        try:
            if manifest["schema"] != SCHEMA:
                raise FormatError(
                    f"{prefix}/manifest.json has schema {manifest['schema']!r}, not {SCHEMA}",
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
                f"{prefix}/manifest.json is not a stage's manifest", hint="delete the stage"
            ) from error
        if self.identity.key != key:
            raise FormatError(f"{prefix}/manifest.json belongs to another stage")
        self._frames: dict[int, tuple[str, Frame]] = {}
        self._buffer = bytearray()
        self._threads = threads
        self._encoding: Encoding | None = None

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
        view = memoryview(self._buffer)[: entry.size]
        self._store.read_into(key, entry.offset, view, sha256=entry.sha256)
        return view

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
        kind, width, digest = facts
        expected = bytes_per_state(kind, width) * identity.vocabulary
        data = self._store.read(f"{identity.prefix}/head", sha256=digest, limit=expected)
        if len(data) != expected:
            raise FormatError(f"{identity.prefix}/head has {len(data)} bytes, not {expected}")
        return OutputHead(np.frombuffer(data, np.uint8), kind, width, identity.vocabulary)


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


def _head_facts(entry: Any) -> tuple[str, int, str] | None:  # noqa: ANN401 - whatever JSON holds
    """Type, width and digest of a manifest's output head."""
    if entry is None:
        return None
    kind, width = str(entry["type"]), int(entry["width"])
    whole_blocks = kind != "Q8_0" or width % BLOCK == 0
    if kind not in SUPPORTED_HEADS or not 0 < width <= MAX_WIDTH or not whole_blocks:
        raise ValueError
    return kind, width, str(entry["sha256"])


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
