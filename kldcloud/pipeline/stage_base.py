"""Base stages that come from a llama.cpp base file instead of a model."""

from __future__ import annotations

from kldcloud.corpus.chunks import shard_size
from kldcloud.pipeline.corpora import ChunkedCorpus
from kldcloud.pipeline.model_files import KldBase
from kldcloud.pipeline.progress import Progress
from kldcloud.staging.encodings import KldEncoding
from kldcloud.staging.kld_file import read_kld_chunk
from kldcloud.staging.stage import (
    StageIdentity,
    finish_stage,
    is_complete,
    stage_shards,
    write_shard,
)
from kldcloud.store.base import Store


def kld_identity(base: KldBase, corpus: ChunkedCorpus) -> StageIdentity:
    """The stage of a base file; no engine of ours had a part in it."""
    return StageIdentity(
        base_sha256=base.sha256,
        tokens_sha256=corpus.tokens_sha256,
        context=corpus.context,
        chunks=corpus.count,
        vocabulary=base.header.n_vocab,
        encoding="kld",
        engine={},
    )


def import_kld(
    store: Store,
    base: KldBase,
    corpus: ChunkedCorpus,
    identity: StageIdentity,
    progress: Progress,
) -> None:
    """Copy a base file's rows into a stage, one shard in memory at a time."""
    if is_complete(store, identity):
        return
    shards = stage_shards(store, identity, shard_size(corpus.count, 1))
    encoding = KldEncoding(identity.shape)
    with progress.bar(f"importing {base.file}", corpus.count) as bar:
        for shard in shards:
            if store.size(identity.shard_key(shard)) is None:
                frames = [
                    encoding.encode_rows(read_kld_chunk(base.path, base.header, chunk))
                    for chunk in shard.chunks
                ]
                write_shard(store, identity, shard, frames)
            bar.advance(shard.count)
    finish_stage(store, identity, shards, corpus.chunks, None)
