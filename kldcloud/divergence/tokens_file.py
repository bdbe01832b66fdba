"""Chunk means from tokens.parquet, a row group at a time: for runs whose partials are gone."""

from __future__ import annotations

from collections.abc import Mapping
from io import RawIOBase
from itertools import pairwise
from typing import Any, Final

import numpy as np

from kldcloud.divergence.records import Floats, Ints
from kldcloud.divergence.summary import ChunkMeans
from kldcloud.errors import FormatError

_WANTED: Final = {"candidate": "string", "corpus": "string", "chunk": "int32", "kld": "double"}
# The writer's groups have 2**18 rows; one that claims far more would take far more memory.
_MOST_GROUP_ROWS: Final = 1 << 22
_WIDEST: Final = 16
"""Bytes a value, generously: the same bound as for partials."""
_MOST_METADATA_BYTES: Final = 1 << 28


def read_chunk_means(
    file: RawIOBase, *, rows: int, name: str
) -> Mapping[tuple[str, str], ChunkMeans]:
    """Mean KL divergence of every chunk, by (candidate, corpus).

    Args:
        file: a tokens.parquet as `records.TokenWriter` writes it, opened for seeking.
        rows: how many token records it must have.
        name: what errors call it.

    Raises:
        FormatError: it is not that file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: dict[tuple[str, str], _Values] = {}
    try:
        parquet = pq.ParquetFile(
            file, page_checksum_verification=True, thrift_string_size_limit=_MOST_METADATA_BYTES
        )
        _check(parquet, rows, name)
        for at in range(parquet.num_row_groups):
            table = parquet.read_row_group(at, columns=list(_WANTED), use_threads=False)
            if any(column.null_count for column in table.columns):
                raise FormatError(f"{name}: has records without a value")
            _sort(table, found)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FormatError(f"{name}: not readable as Parquet: {reason}") from error
    return {whose: values.means(name) for whose, values in found.items()}


class _Values:
    """One candidate's rows on one corpus, in the order in which they stand."""

    def __init__(self) -> None:
        self.chunks: list[Ints] = []
        self.kld: list[Floats] = []

    def means(self, name: str) -> ChunkMeans:
        chunk, kld = np.concatenate(self.chunks), np.concatenate(self.kld)
        edges = [0, *(np.flatnonzero(np.diff(chunk)) + 1).tolist(), len(chunk)]
        if chunk[edges[:-1]].tolist() != list(range(len(edges) - 1)) or not np.isfinite(kld).all():
            raise FormatError(f"{name}: its chunks are not all there, in order and finite")
        sizes = tuple(stop - start for start, stop in pairwise(edges))
        # As `Moments.from_values` does it, so that the bits are those of the partials.
        sums = [float(np.sum(kld[start:stop])) for start, stop in pairwise(edges)]
        return ChunkMeans(sizes, np.array(sums) / np.array(sizes, np.float64))


def _check(parquet: Any, rows: int, name: str) -> None:  # noqa: ANN401 -- pyarrow, untyped
    footer = parquet.metadata
    schema = {field.name: str(field.type) for field in parquet.schema_arrow}
    if any(schema.get(column) != kind for column, kind in _WANTED.items()):
        raise FormatError(f"{name}: its columns are not those of token records")
    groups = [footer.row_group(at) for at in range(footer.num_row_groups)]
    counts = [group.num_rows for group in groups]
    if footer.num_rows != rows or sum(counts) != rows:
        raise FormatError(f"{name}: holds {footer.num_rows:,} records, not {rows:,}")
    if max(counts, default=0) > _MOST_GROUP_ROWS:
        raise FormatError(f"{name}: has row groups of up to {max(counts):,} records")
    for group in groups:
        for at in range(group.num_columns):
            claimed = group.column(at).total_uncompressed_size
            # Dictionaries of names, and page headers, come on top.
            if not 0 <= claimed <= _WIDEST * group.num_rows + (1 << 20):
                raise FormatError(f"{name}: a column claims {claimed:,} bytes")


def _sort(table: Any, found: dict[tuple[str, str], _Values]) -> None:  # noqa: ANN401
    """Append a row group's rows to those of their candidate and corpus."""
    whose = [table.column(column).combine_chunks() for column in ("candidate", "corpus")]
    chunk = table.column("chunk").combine_chunks().to_numpy(zero_copy_only=False)
    kld = table.column("kld").combine_chunks().to_numpy(zero_copy_only=False)
    codes = [column.dictionary_encode() for column in whose]
    # Rows of one candidate on one corpus follow one another, so few runs cover a group.
    steps = [np.diff(each.indices.to_numpy(zero_copy_only=False)) for each in codes]
    edges = [0, *(np.flatnonzero(steps[0] | steps[1]) + 1).tolist(), len(chunk)]
    for start, stop in pairwise(edges):
        if start < stop:
            names = tuple(str(each.dictionary[each.indices[start].as_py()]) for each in codes)
            values = found.setdefault((names[0], names[1]), _Values())
            values.chunks.append(chunk[start:stop])
            values.kld.append(kld[start:stop])
