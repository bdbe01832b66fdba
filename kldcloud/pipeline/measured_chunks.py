"""Each chunk's mean KL divergence of what a run has measured: from partials, or tokens.parquet.

Of partials the footers alone are read. No digest covers a footer by itself, so what the chunks come
to is held against the summary, and where the two differ the partials are read whole, to say which.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from kldcloud.divergence.estimates import Estimate, Means
from kldcloud.divergence.moments import INDEX, Moments, merge_in_order
from kldcloud.divergence.partial import Partial, PartialIdentity
from kldcloud.divergence.summary import ChunkMeans
from kldcloud.divergence.tokens_file import read_chunk_means
from kldcloud.errors import FormatError, UserError
from kldcloud.pipeline.committed_moments import committed_moments
from kldcloud.pipeline.reduce import MAX_PARTIAL_BYTES
from kldcloud.pipeline.runs import FoundRun
from kldcloud.report.summary_shape import Result, Summary
from kldcloud.status.run_files import PartialFile, list_run
from kldcloud.store.base import ObjectInfo, Store
from kldcloud.store.digest import sha256_bytes
from kldcloud.store.object_file import ObjectFile
from kldcloud.store.s3_parallel import run_in_flight

Pair = tuple[str, str]
"""A candidate and a corpus, as their run calls them."""
READS_IN_FLIGHT: Final = 16
MEASURE_AGAIN: Final = "delete it and the run's summary.json, and launch the job again"
_AGREES: Final = 1e-9
"""Relative; the same sums in the same order, but perhaps by another processor."""
_DIGITS: Final = 16


@dataclass(frozen=True, slots=True)
class _Piece:
    """A partial that is in the store, and what it must be."""

    info: ObjectInfo
    identity: PartialIdentity


def measured_chunks(
    found: FoundRun, summary: Summary, pairs: Iterable[Pair]
) -> dict[Pair, ChunkMeans]:
    """Read what a run has measured, chunk by chunk.

    Args:
        found: the run.
        summary: its own.
        pairs: which of its measurements; each must be complete in the summary.

    Raises:
        UserError: partials are gone, and tokens.parquet is as well.
        FormatError: a partial or tokens.parquet is not what the summary was made of.
    """
    results = {(each.candidate, each.corpus): each.result for each in summary.results}
    wanted = {pair: result for pair in pairs if (result := results[pair]) is not None}
    listed: dict[Pair, list[PartialFile]] = {}
    for part in list_run(found.store, found.run).partials:
        listed.setdefault((part.candidate, part.corpus), []).append(part)
    pieces = {
        pair: _pieces(found.run, result.chunks, listed.get(pair, ()))
        for pair, result in wanted.items()
    }
    gone = [pair for pair, its in pieces.items() if its is None]
    read = _from_partials(found.store, {pair: its for pair, its in pieces.items() if its})
    if gone:
        read |= _from_tokens(found, summary, gone)
    for pair, result in wanted.items():
        if not _comes_to(read[pair], result):
            _blame(found, pair, pieces[pair])
    return read


def _pieces(run: str, chunks: int, partials: Sequence[PartialFile]) -> list[_Piece] | None:
    """The partials that cover so many chunks, in order; None if one is missing."""
    by_first = {part.shard.first: part for part in partials}
    if len(by_first) < len(partials):
        return None  # cut in two ways: nobody could say which of them counts
    pieces, at = [], 0
    while at < chunks and at in by_first:
        part = by_first[at]
        identity = PartialIdentity(run, part.candidate, part.corpus, at, part.shard.count)
        pieces.append(_Piece(ObjectInfo(part.key, part.size), identity))
        at += max(part.shard.count, 1)
    return pieces if at == chunks else None


def _from_partials(store: Store, pieces: Mapping[Pair, list[_Piece]]) -> dict[Pair, ChunkMeans]:
    def read(piece: _Piece, _: threading.Event) -> tuple[Moments, ...]:
        try:
            return committed_moments(store, piece.info, piece.identity)
        except FormatError as error:
            _read_whole(store, piece)
            # Its records are what its digest says, so the footer alone is unusual.
            raise FormatError(error.message, hint=MEASURE_AGAIN) from error

    flat = [piece for its in pieces.values() for piece in its]
    moments = dict(
        zip(
            (piece.info.key for piece in flat),
            run_in_flight(read, flat, width=READS_IN_FLIGHT),
            strict=True,
        )
    )
    found = {}
    for pair, its in pieces.items():
        chunks = [each for piece in its for each in moments[piece.info.key]]
        means = np.array([each.mean[INDEX["kld"]] for each in chunks])
        found[pair] = ChunkMeans(tuple(each.count for each in chunks), means)
    return found


def _from_tokens(found: FoundRun, summary: Summary, gone: Sequence[Pair]) -> dict[Pair, ChunkMeans]:
    key = f"{found.prefix}/tokens.parquet"
    size = found.store.size(key)
    if size is None:
        candidate, corpus = gone[0]
        raise UserError(
            f"run {found.run} has no partials of {candidate} on {corpus} (any more), and no"
            " tokens.parquet",
            hint="delete its summary.json and launch its job again",
        )
    rows = sum(each.result.tokens for each in summary.results if each.result)
    file = ObjectFile(found.store, ObjectInfo(key, size))
    read = read_chunk_means(file, rows=rows, name=key)
    missing = [pair for pair in gone if pair not in read]
    if missing:
        candidate, corpus = missing[0]
        raise FormatError(f"{key}: holds nothing of {candidate} on {corpus}", hint=MEASURE_AGAIN)
    return {pair: read[pair] for pair in gone}


def _comes_to(chunks: ChunkMeans, result: Result) -> bool:
    """Whether chunks give the mean, the error and the counts that the summary has."""
    if len(chunks.sizes) != result.chunks or sum(chunks.sizes) != result.tokens:
        return False
    found, expected = _mean(chunks), result.kld.mean
    return _agrees(found.value, expected.value) and _agrees(found.error, expected.error)


def _mean(chunks: ChunkMeans) -> Estimate:
    """As a reduction does it, of one variable alone."""
    nothing = np.zeros((1, 1))
    moments = [
        Moments(size, np.array([mean]), nothing)
        for size, mean in zip(chunks.sizes, chunks.means, strict=True)
    ]
    total = merge_in_order(moments, Moments.of_nothing(1))
    return Means(total, chunks.sizes, [each.mean for each in moments]).mean("kld", low=0.0)


def _agrees(found: float | None, expected: float | None) -> bool:
    if found is None or expected is None:
        return found is expected
    # An error of next to nothing is the rest of a cancellation.
    return math.isclose(found, expected, rel_tol=_AGREES, abs_tol=1e-15)


def _blame(found: FoundRun, pair: Pair, pieces: Sequence[_Piece] | None) -> None:
    """Name what is damaged."""
    for piece in pieces or ():
        _read_whole(found.store, piece)
    candidate, corpus = pair
    source = "tokens.parquet" if pieces is None else f"partials of {candidate} on {corpus}"
    raise FormatError(
        f"run {found.run}: its {source} do not come to the mean KLD of its summary",
        hint="delete its summary.json and launch its job again",
    )


def _read_whole(store: Store, piece: _Piece) -> None:
    """Check a partial down to its records.

    Raises:
        FormatError: it is damaged; named by its key and by the digest of what is there.
    """
    data = store.read(piece.info.key, limit=MAX_PARTIAL_BYTES)
    name = f"{piece.info.key} (sha256 {sha256_bytes(data)[:_DIGITS]}...)"
    try:
        Partial.from_bytes(data, expected=piece.identity, name=name)
    except FormatError as error:
        raise FormatError(error.message, hint=MEASURE_AGAIN) from error
