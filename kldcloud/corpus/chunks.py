"""Cutting a tokenised text into chunks and scored positions, exactly as llama.cpp does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from kldcloud.errors import UserError

Tokens = npt.NDArray[np.int32]

_LEAST_OFFERED: Final = 16
"""The shortest context that a sweep, a distillation and an importance matrix all accept."""


@dataclass(frozen=True, slots=True)
class ChunkShape:
    """Which positions of a chunk are scored: its second half, less the last position.

    The logits of position p predict token p + 1, so positions n_ctx/2 .. n_ctx-2 are scored.
    """

    context: int

    @property
    def first(self) -> int:
        """The first scored position."""
        return self.context // 2

    @property
    def rows(self) -> int:
        """Scored positions a chunk."""
        return self.context - 1 - self.first

    def positions(self) -> npt.NDArray[np.int32]:
        """int32 [rows], the scored positions."""
        return np.arange(self.first, self.context - 1, dtype=np.int32)

    def next_tokens(self, chunk: Tokens) -> Tokens:
        """int32 [rows], the token after each scored position."""
        return np.ascontiguousarray(chunk[self.first + 1 :])


@dataclass(frozen=True, slots=True)
class Shard:
    """A contiguous range of chunks: the unit of work, of staging and of retry."""

    first: int
    count: int

    @property
    def chunks(self) -> range:
        return range(self.first, self.first + self.count)

    @property
    def label(self) -> str:
        """Fixed width, so that names sort in chunk order."""
        return f"{self.first:07d}-{self.count:04d}"


def cut_chunks(tokens: Tokens, context: int, limit: int | Literal["all"]) -> Tokens:
    """The text's chunks.

    Args:
        tokens: int32 [n], the whole text, special tokens added.
        context: tokens a chunk, n_ctx.
        limit: at most this many chunks.

    Returns:
        int32 [chunks, n_ctx]; what is left over at the end is dropped.

    Raises:
        UserError: if the text has fewer than two chunks, as llama-perplexity also demands.
    """
    check_length(len(tokens), context)
    count = len(tokens) // context
    if limit != "all":
        count = min(count, limit)
    return np.ascontiguousarray(tokens[: count * context].reshape(count, context))


def check_length(tokens: int, context: int, text: str = "the text") -> None:
    """See that a text has two chunks.

    Args:
        tokens: that it has.
        context: tokens a chunk, n_ctx.
        text: what errors call it.

    Raises:
        UserError: if it has not; a shorter context is offered if every job may have it.
    """
    if tokens < 2 * context:
        most = tokens // 2
        shorter = f", or a context of at most {most}" if most >= _LEAST_OFFERED else ""
        raise UserError(
            f"{text} has {tokens} tokens, fewer than two chunks of {context}",
            hint=f"give a longer text{shorter}",
        )


def cut_shards(chunks: int, size: int, edges: Sequence[int] = ()) -> Iterator[Shard]:
    """Shards of `size` chunks in order; the last, and the last before an edge, may be smaller."""
    for start, end in pairwise(sorted({0, chunks, *edges})):
        for first in range(start, end, size):
            yield Shard(first, min(size, end - first))


def shard_size(chunks: int, workers: int) -> int:
    """Chunks a shard: about four shards a worker, so that the last ones end together; at most 8.

    A shard is what a kill costs and what a worker holds in memory at once is a chunk, so there is
    little to gain from larger ones.
    """
    return max(1, min(8, chunks // (4 * workers)))
