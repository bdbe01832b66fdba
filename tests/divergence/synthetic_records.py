"""Seeded token records for tests: correlated within a chunk, as text is."""

from __future__ import annotations

import numpy as np

from kldcloud.divergence.partial import Partial, PartialIdentity
from kldcloud.divergence.records import TokenRecords

ROWS = 31


def records(
    chunks: int, *, rows: int = ROWS, seed: int = 0, first: int = 0, llama: bool = True
) -> TokenRecords:
    rng = np.random.default_rng(seed)
    n = chunks * rows
    shared = np.repeat(rng.normal(size=chunks), rows)
    nll_base = np.abs(rng.gamma(1.2, 1.8, n) + 0.5 * shared) + 1e-3
    nll = np.abs(nll_base + rng.normal(0, 0.2, n) + 0.05 * shared) + 1e-6
    kld = np.exp(rng.normal(-4, 1.5, n) + 0.4 * shared)
    kld[:: max(n // 7, 1)] = 0.0
    top_base = rng.integers(0, 50, n)
    off = np.full(n, np.nan)
    return TokenRecords(
        chunk=np.repeat(np.arange(first, first + chunks), rows).astype(np.int32),
        position=np.tile(np.arange(rows, 2 * rows), chunks).astype(np.int32),
        token=rng.integers(0, 50, n).astype(np.int32),
        kld=kld,
        reverse_kld=kld * rng.uniform(0.8, 1.3, n),
        nll=nll,
        nll_base=nll_base,
        entropy_base=rng.gamma(2.0, 1.0, n),
        top=np.where(rng.random(n) < 0.9, top_base, 99).astype(np.int32),
        top_base=top_base.astype(np.int32),
        llama_kld=kld - 1e-4 * rng.random(n) if llama else off,
        llama_nll=(nll if llama else off).astype(np.float32),
        llama_nll_base=(nll_base - 1e-4 if llama else off).astype(np.float32),
        llama_top_base=(top_base if llama else np.full(n, -1)).astype(np.int32),
    )


def identity(first_chunk: int, chunk_count: int) -> PartialIdentity:
    return PartialIdentity("run1", "q4", "wiki", first_chunk, chunk_count)


def partials(source: TokenRecords, shard: int) -> list[Partial]:
    """Cut records into shards of so many chunks."""
    first, last = int(source.chunk[0]), int(source.chunk[-1])
    found = []
    for start in range(first, last + 1, shard):
        stop = min(start + shard, last + 1)
        rows = (source.chunk >= start) & (source.chunk < stop)
        found.append(
            Partial.from_records(source.select(rows), identity=identity(start, stop - start))
        )
    return found
