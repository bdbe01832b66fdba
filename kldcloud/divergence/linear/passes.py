"""The passes over the vocabulary, tile by tile, for a portion of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

from kldcloud.divergence.linear import tile_torch
from kldcloud.divergence.linear.encoding import Encoding, LlamaSums, add_up
from kldcloud.divergence.linear.side import LinearSide
from kldcloud.divergence.linear.stretches import Pieces, Stretches, join_pieces

Engine: TypeAlias = Literal["torch", "tiles"]
"""How a tile's sums are made.

torch: PyTorch's operations one by one, on any device.
tiles: the products by the vendor's library, each tile then read once by a Triton kernel.

A third way, products and sums in one Triton kernel that writes no logit, was slower: two products
in registers leave no room for large blocks (on an H200 at d = 2048 it ran at 44 % of the products'
own speed, where tiles had 60 %).
"""

ROWS: Final = {"cpu": 512, "cuda": 4096}
"""Rows at a time: enough that reading the heads is nothing beside the product."""

TILE_BYTES: Final = {"cpu": 16 << 20, "cuda": 128 << 20}
"""Logits of both sides, and what is made of them.

On CPUs a tile should stay in the last-level cache. On GPUs launches are what small tiles cost: on
an H200, with 4096 rows of bfloat16, 64 MiB take 3 % longer than 128, and 256 MiB 2 % less.
"""

_BUFFERS: Final = 2
"""One that is read while the other is filled."""

LEAST_COLUMNS: Final = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """How one portion of rows is done.

    Attributes:
        engine: which way.
        columns: of a tile.
        stretch: of those summed up together; a tile has one or more.
        vocabulary: V.
    """

    engine: Engine
    columns: int
    stretch: int
    vocabulary: int

    @classmethod
    def of(cls, base: LinearSide, candidate: LinearSide, engine: Engine, tile_bytes: int) -> Plan:
        """For such sides, in such tiles."""
        vocabulary = base.vocabulary
        buffers = tile_torch.BUFFERS if engine == "torch" else 2
        a_column = 4 * (base.rows * buffers + base.widened + candidate.widened)
        columns = min(max(tile_bytes // max(a_column, 1), LEAST_COLUMNS), vocabulary)
        if engine == "torch":
            return cls(engine, columns, columns, vocabulary)
        from kldcloud.divergence.linear.tile_triton import WIDTH

        return cls(engine, -(-columns // WIDTH) * WIDTH, WIDTH, vocabulary)

    def tiles(self) -> Iterator[tuple[int, int]]:
        """First column and end of each."""
        for start in range(0, self.vocabulary, self.columns):
            yield start, min(start + self.columns, self.vocabulary)

    def stretches(self, columns: int) -> int:
        """How many so many columns are."""
        return -(-columns // self.stretch)


def first_pass(
    base: LinearSide, candidate: LinearSide, tokens: Tensor, plan: Plan
) -> tuple[Pieces, Tensor]:
    """All but llama.cpp's statistics.

    Args:
        base: n rows, `ready`.
        candidate: the same rows, `ready`.
        tokens: int32 ``[n]`` on their device, the next tokens.
        plan: of these.

    Returns:
        The whole vocabulary as one piece; the next tokens' logits, float32 ``[2, n]``.
    """
    rows, device = base.rows, base.weight.device
    picked = torch.empty(2, rows, dtype=torch.float32, device=device)
    if plan.engine == "tiles":
        from kldcloud.divergence.linear import merge_triton, tile_triton

        room = Stretches.empty(rows, plan.stretches(plan.vocabulary), device)
        best = torch.full_like(picked, -torch.inf)

        def summarise(b: Tensor, c: Tensor, start: int) -> None:
            tile_triton.summarise(b, c, start, tokens, picked, best, room, start // plan.stretch)

        _on_each_tile(base, candidate, plan, summarise)
        return merge_triton.merge(room), picked
    pieces = []
    for start, stop in plan.tiles():
        out = Stretches.empty(rows, 1, device)
        b, c = base.logits(start, stop), candidate.logits(start, stop)
        tile_torch.summarise(b, c, start, tokens, picked, out)
        pieces.append(Pieces.of(out))
    return join_pieces(pieces).merge(), picked


def second_pass(
    base: LinearSide, candidate: LinearSide, plan: Plan, encoding: Encoding
) -> LlamaSums:
    """llama.cpp's sums over the whole vocabulary, t = 1; all products are made again."""
    if plan.engine == "tiles":
        from kldcloud.divergence.linear import tile_triton

        room = LlamaSums.empty(base.rows, plan.stretches(plan.vocabulary), base.weight.device)

        def sum_up(b: Tensor, c: Tensor, start: int) -> None:
            tile_triton.llama_sums(b, c, start, encoding, room, start // plan.stretch)

        _on_each_tile(base, candidate, plan, sum_up)
        return add_up([room])
    parts = []
    for start, stop in plan.tiles():
        b, c = base.logits(start, stop), candidate.logits(start, stop)
        parts.append(tile_torch.llama_sums(b, c, start, encoding))
    return add_up(parts)


def _on_each_tile(
    base: LinearSide, candidate: LinearSide, plan: Plan, work: Callable[[Tensor, Tensor, int], None]
) -> None:
    """Call `work` with both sides' logits of each tile, and its first token, in order.

    On a GPU what it gives it to do goes on beside the next tile's products: those leave the memory
    idle, and processors where their last blocks end.
    """
    device = base.weight.device
    if device.type != "cuda":
        for start, stop in plan.tiles():
            work(base.logits(start, stop), candidate.logits(start, stop), start)
        return
    first, beside = torch.cuda.current_stream(device), _beside(device)
    shape = 2, base.rows, min(plan.columns, plan.vocabulary)
    buffers = [torch.empty(shape, dtype=torch.float32, device=device) for _ in range(_BUFFERS)]
    read: list[torch.cuda.Event] = []
    beside.wait_stream(first)
    try:
        for at, (start, stop) in enumerate(plan.tiles()):
            if at >= _BUFFERS:
                first.wait_event(read[at - _BUFFERS])
            b, c = buffers[at % _BUFFERS][..., : stop - start]
            base.logits(start, stop, b)
            candidate.logits(start, stop, c)
            beside.wait_event(first.record_event())
            with torch.cuda.stream(beside):
                work(b, c, start)
            read.append(beside.record_event())
    finally:
        # Nobody gets the buffers, or reads what came of them, before all is done.
        first.wait_stream(beside)


@cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    """A second queue of a GPU's work, the same for the whole process."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
