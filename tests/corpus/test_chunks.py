"""How a text is cut: what llama-perplexity would cut, and no other way."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from kldcloud.corpus.chunks import ChunkShape, Shard, cut_chunks, cut_shards, shard_size
from kldcloud.errors import UserError


@pytest.mark.parametrize(("tokens", "chunks"), [(16, 2), (17, 2), (23, 2), (24, 3), (800, 100)])
def test_chunks_follow_one_another_and_the_remainder_is_dropped(tokens: int, chunks: int) -> None:
    cut = cut_chunks(np.arange(tokens, dtype=np.int32), 8, "all")
    assert cut.shape == (chunks, 8)
    assert cut.dtype == np.int32
    assert (cut.ravel() == np.arange(chunks * 8)).all()


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
def test_a_limit_takes_chunks_from_the_start(limit: int) -> None:
    cut = cut_chunks(np.arange(24, dtype=np.int32), 8, limit)
    assert (cut.ravel() == np.arange(min(limit, 3) * 8)).all()


@pytest.mark.parametrize("limit", [1, "all"])
def test_a_text_of_less_than_two_chunks_is_refused(limit: int | Literal["all"]) -> None:
    with pytest.raises(UserError, match=r"199 tokens, fewer than two chunks of 100.*at most 99"):
        cut_chunks(np.arange(199, dtype=np.int32), 100, limit)


@pytest.mark.parametrize("tokens", [0, 2, 15])
def test_no_context_is_offered_that_a_job_may_not_have(tokens: int) -> None:
    with pytest.raises(UserError) as refused:
        cut_chunks(np.arange(tokens, dtype=np.int32), 64, "all")
    assert refused.value.hint == "give a longer text"


@pytest.mark.parametrize(
    ("context", "first", "rows"), [(512, 256, 255), (128, 64, 63), (8, 4, 3), (9, 4, 4), (13, 6, 6)]
)
def test_the_second_half_is_scored_less_the_last_position(
    context: int, first: int, rows: int
) -> None:
    shape = ChunkShape(context)
    chunk = np.arange(100, 100 + context, dtype=np.int32)
    assert (shape.first, shape.rows) == (first, rows)
    assert shape.positions().tolist() == list(range(first, context - 1))
    # The logits of position p predict the token at p + 1.
    assert (shape.next_tokens(chunk) == chunk[shape.positions() + 1]).all()


@pytest.mark.parametrize(("chunks", "size"), [(1, 1), (8, 3), (9, 3), (5, 100)])
def test_shards_hold_every_chunk_once_and_in_order(chunks: int, size: int) -> None:
    shards = list(cut_shards(chunks, size))
    assert [chunk for shard in shards for chunk in shard.chunks] == list(range(chunks))
    assert all(1 <= shard.count <= size for shard in shards)


@pytest.mark.parametrize("edges", [(), (4,), (1, 4, 9), (0, 12), (3, 6, 9)])
def test_no_shard_reaches_across_an_edge(edges: tuple[int, ...]) -> None:
    shards = list(cut_shards(12, 3, edges))
    assert [chunk for shard in shards for chunk in shard.chunks] == list(range(12))
    assert all(1 <= shard.count <= 3 for shard in shards)
    for edge in edges:
        assert not any(shard.first < edge < shard.first + shard.count for shard in shards)


def test_labels_of_shards_sort_as_their_chunks_do() -> None:
    labels = [shard.label for shard in cut_shards(2_000_000, 999)]
    assert labels == sorted(labels)
    assert Shard(12, 4).label == "0000012-0004"


@pytest.mark.parametrize("workers", [1, 2, 64])
@pytest.mark.parametrize("chunks", [1, 7, 580, 100_000])
def test_shards_are_small_enough_to_share_out(chunks: int, workers: int) -> None:
    size = shard_size(chunks, workers)
    assert 1 <= size <= 8
    assert size == 1 or len(list(cut_shards(chunks, size))) >= 4 * workers
