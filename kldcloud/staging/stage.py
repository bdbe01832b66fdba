"""A base stage in a store: its identity, its objects, and committing them.

stages/<key>/plan.json         how it is cut into shards; the first to stage decides
stages/<key>/<shard>.shard     frames, committed by workers
stages/<key>/tokens, head      what reading needs beside frames
stages/<key>/manifest.json     committed last: the stage is whole, and these are its digests
stages/<key>/manifest-N.json   the same of its first N chunks, where a run may stop before the end
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kldcloud.corpus.chunks import ChunkShape, Shard, Tokens, cut_shards
from kldcloud.errors import FormatError
from kldcloud.staging.encodings import StageShape
from kldcloud.staging.head import NOTHING_AFTER, OutputHead
from kldcloud.staging.shard_file import build_shard, parse_header, read_header
from kldcloud.store.base import Store
from kldcloud.store.digest import sha256_bytes

SCHEMA = "kldcloud.stage/2"
MAX_JSON_BYTES = 64 << 20
MAX_CHUNKS = 1 << 24


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


def stage_shards(
    store: Store, identity: StageIdentity, proposed_size: int, edges: Sequence[int] = ()
) -> list[Shard]:
    """How this stage is cut: as whoever staged first decided, and at every edge."""
    plan = agree_on_json(store, f"{identity.prefix}/plan.json", {"shard_chunks": proposed_size})
    size = plan.get("shard_chunks") if isinstance(plan, dict) else None
    if not isinstance(size, int) or not 1 <= size <= MAX_CHUNKS:
        raise FormatError(f"{identity.prefix}/plan.json: no shard size", hint="delete the stage")
    return list(cut_shards(identity.chunks, size, edges))


def write_shard(
    store: Store, identity: StageIdentity, shard: Shard, frames: Sequence[bytes]
) -> None:
    """Commit one shard; a second commit of the same shard changes nothing."""
    store.write_new(identity.shard_key(shard), build_shard(shard, frames))


def manifest_key(key: str, upto: int | None = None) -> str:
    """Where the manifest of a stage is, or of its first chunks up to that one."""
    return f"stages/{key}/manifest{'' if upto is None else f'-{upto:07d}'}.json"


def head_bytes(head: OutputHead) -> bytes | memoryview:
    """A head as the store keeps it: its rows, then the bias as float32 if there is one."""
    if head.bias is None:
        return head.data.data
    return b"".join((head.data.data, head.bias.astype("<f4", copy=False).data))


def is_complete(store: Store, identity: StageIdentity, upto: int | None = None) -> bool:
    """Whether the stage, or its first chunks, is whole and can be measured against."""
    return store.size(manifest_key(identity.key, upto)) is not None


def finish_stage(
    store: Store,
    identity: StageIdentity,
    shards: Sequence[Shard],
    chunks: Tokens,
    head: OutputHead | None,
    upto: int | None = None,
) -> None:
    """Commit tokens, head and manifest over shards that are all committed.

    Args:
        store: where.
        identity: of the whole stage.
        shards: of the whole stage, or those up to `upto`.
        chunks: int32 [chunks, n_ctx], all of them.
        head: the base's, for hidden states.
        upto: for a manifest of so many first chunks; None for the stage's own.
    """
    tokens = tokens_bytes(chunks)
    store.write_new(f"{identity.prefix}/tokens", tokens)
    head_facts: dict[str, object] | None = None
    if head is not None:
        stored = head_bytes(head)
        store.write_new(f"{identity.prefix}/head", stored)
        head_facts = {
            "type": head.type_name,
            "width": head.width,
            "sha256": sha256_bytes(stored),
        }
        # Of a head that is not a product alone; most are, and have no more to say.
        if head.bias is not None:
            head_facts["bias"] = True
        if head.after != NOTHING_AFTER:
            head_facts["after"] = asdict(head.after)
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
    store.write_new(manifest_key(identity.key, upto), canonical_json(manifest))
