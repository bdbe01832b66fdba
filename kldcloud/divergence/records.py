"""Token records: what one scored position yields for one candidate, as columns and as Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from kldcloud.errors import FormatError

if TYPE_CHECKING:
    import pyarrow as pa

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]
Selection = slice | Flags | npt.NDArray[np.intp]

COLUMNS: Mapping[str, np.dtype[Any]] = {
    "chunk": np.dtype(np.int32),
    "position": np.dtype(np.int32),
    "token": np.dtype(np.int32),
    "kld": np.dtype(np.float64),
    "reverse_kld": np.dtype(np.float64),
    "nll": np.dtype(np.float64),
    "nll_base": np.dtype(np.float64),
    "entropy_base": np.dtype(np.float64),
    "top": np.dtype(np.int32),
    "top_base": np.dtype(np.int32),
    "llama_kld": np.dtype(np.float64),
    "llama_nll": np.dtype(np.float32),
    "llama_nll_base": np.dtype(np.float32),
    "llama_top_base": np.dtype(np.int32),
}
LLAMA_FLOATS = ("llama_kld", "llama_nll", "llama_nll_base")

DEFAULT_MAX_ROWS = 1 << 24
_MAX_METADATA_BYTES = 1 << 28
_ZSTD_LEVEL = 3
# The writer of tokens.parquet holds one group in memory: 80 bytes a row, so about 20 MB.
_GROUP_ROWS = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class TokenRecords:
    """Columns of equal length, one entry a scored position, in (chunk, position) order.

    All divergences are in nats. The ``llama_*`` columns hold what llama-perplexity computes from
    16-nat codes in its own float arithmetic; with that off they are NaN, and -1 for the token.

    Attributes:
        chunk: int32, index of the chunk in the corpus.
        position: int32, index in the chunk of the position whose prediction is scored.
        token: int32, the token that follows, so the one that was predicted.
        kld: float64, KL(base || candidate).
        reverse_kld: float64, KL(candidate || base).
        nll: float64, the candidate's negative log-probability of ``token``.
        nll_base: float64, the same of the base.
        entropy_base: float64, entropy of the base's distribution.
        top: int32, the candidate's most probable token, the first one of equals.
        top_base: int32, the same of the base.
        llama_kld: float64, may be slightly negative: the codes do not sum to one.
        llama_nll: float32.
        llama_nll_base: float32, floored at the lowest code.
        llama_top_base: int32, first maximum of the decoded codes.
    """

    chunk: Ints
    position: Ints
    token: Ints
    kld: Floats
    reverse_kld: Floats
    nll: Floats
    nll_base: Floats
    entropy_base: Floats
    top: Ints
    top_base: Ints
    llama_kld: Floats
    llama_nll: Singles
    llama_nll_base: Singles
    llama_top_base: Ints

    def __post_init__(self) -> None:
        for name, dtype in COLUMNS.items():
            column = getattr(self, name)
            if column.dtype != dtype or column.shape != self.chunk.shape or column.ndim != 1:
                message = f"column {name} is {column.dtype}{column.shape}, not {dtype} a record"
                raise TypeError(message)

    def __len__(self) -> int:
        return self.chunk.size

    @property
    def probability_change(self) -> Floats:
        """float64: what the candidate adds to the probability of the following token."""
        return np.exp(-self.nll) - np.exp(-self.nll_base)

    @property
    def same_top(self) -> Flags:
        """bool: base and candidate would choose the same token."""
        return np.equal(self.top, self.top_base)

    @property
    def llama_probability_change(self) -> Singles:
        """float32: ``expf(-nll) - expf(-nll_base)``, with expf rounded correctly from float64."""
        candidate, base = (
            np.exp(-column.astype(np.float64)).astype(np.float32)
            for column in (self.llama_nll, self.llama_nll_base)
        )
        return np.subtract(candidate, base, dtype=np.float32)

    @property
    def llama_same_top(self) -> Flags:
        """bool: the candidate's top token is the first maximum of the base's codes."""
        return np.equal(self.top, self.llama_top_base)

    def has_llama(self) -> bool:
        """Whether the ``llama_*`` columns are filled.

        Raises:
            FormatError: some records have them and some have not.
        """
        missing = [np.isnan(getattr(self, name)) for name in LLAMA_FLOATS]
        missing.append(self.llama_top_base < 0)
        if not any(column.any() for column in missing):
            return len(self) > 0
        if all(column.all() for column in missing):
            return False
        raise FormatError("token records have llama.cpp's numbers at some positions only")

    def select(self, rows: Selection) -> Self:
        """The records at ``rows``: a slice, a mask or ascending indices."""
        return type(self)(**{name: getattr(self, name)[rows] for name in COLUMNS})

    def chunks(self) -> Iterator[Self]:
        """The records of one chunk after the other, as views."""
        starts = np.flatnonzero(np.diff(self.chunk)) + 1
        edges = [0, *starts.tolist(), len(self)]
        for start, stop in pairwise(edges):
            if start < stop:
                yield self.select(slice(start, stop))

    def is_ordered(self) -> bool:
        """Whether (chunk, position) strictly ascends from non-negative values."""
        if len(self) == 0:
            return True
        key = self.chunk.astype(np.int64) << 32 | self.position.astype(np.int64)
        return bool(self.chunk[0] >= 0 and self.position.min() >= 0 and (key[1:] > key[:-1]).all())


if tuple(field.name for field in fields(TokenRecords)) != tuple(COLUMNS):
    raise AssertionError("TokenRecords and COLUMNS must list the same columns")


@dataclass(frozen=True, slots=True)
class RecordsFile:
    """Token records and the key-value metadata of the Parquet object that held them."""

    records: TokenRecords
    metadata: Mapping[str, bytes]


def concatenate(parts: Sequence[TokenRecords]) -> TokenRecords:
    """Join records one after the other; the caller's order is kept."""
    return TokenRecords(
        **{
            name: np.concatenate([np.empty(0, dtype), *(getattr(part, name) for part in parts)])
            for name, dtype in COLUMNS.items()
        }
    )


def to_parquet(records: TokenRecords, metadata: Mapping[str, bytes]) -> bytes:
    """Encode records as one Parquet object; the same input gives the same bytes.

    zstd pages with checksums, byte-stream split for floats, deltas for the two sorted columns. No
    timestamp and no Arrow or pandas schema is stored; pyarrow's version is.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, _schema(), use_dictionary=False, write_statistics=False, **_writer_options()
    ) as writer:
        writer.write_table(pa.Table.from_arrays(_arrays(records), schema=_schema()))
        writer.add_key_value_metadata({key: metadata[key] for key in sorted(metadata)})
    data: bytes = sink.getvalue().to_pybytes()
    return data


def from_parquet(
    data: bytes, *, max_rows: int = DEFAULT_MAX_ROWS, name: str = "token records"
) -> RecordsFile:
    """Decode what ``to_parquet`` wrote, believing nothing.

    Args:
        data: the whole object.
        max_rows: the most records that may be decoded.
        name: what errors call the object.

    Raises:
        FormatError: not Parquet, another schema, more than ``max_rows``, sizes that the row count
            does not explain, or records out of (chunk, position) order.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(
            pa.BufferReader(data),
            page_checksum_verification=True,
            thrift_string_size_limit=_MAX_METADATA_BYTES,
        )
        _check_footer(file, max_rows=max_rows, name=name)
        metadata = {
            key.decode(errors="replace"): value
            for key, value in (file.metadata.metadata or {}).items()
        }
        table = file.read(use_threads=False)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FormatError(f"{name}: not readable as Parquet: {reason}") from error
    if table.num_rows != file.metadata.num_rows:
        raise FormatError(
            f"{name}: holds {table.num_rows} records, its footer says {file.metadata.num_rows}"
        )
    records = TokenRecords(
        **{
            column: table.column(column).combine_chunks().to_numpy(zero_copy_only=False)
            for column in COLUMNS
        }
    )
    if not records.is_ordered():
        raise FormatError(f"{name}: records are not in ascending (chunk, position) order")
    return RecordsFile(records, metadata)


class TokenWriter:
    """Writes the final tokens.parquet, one candidate and corpus after the other.

    Adds the columns ``candidate`` and ``corpus`` (dictionary pages). Row groups are cut at a fixed
    number of rows, so the bytes do not depend on how the records were appended. The file appears
    under its name when the ``with`` block ends well, and not at all when it does not.
    """

    def __init__(self, path: Path, *, group_rows: int = _GROUP_ROWS) -> None:
        self._path = path
        self._unfinished = path.with_name(f"{path.name}.unfinished")
        self._group_rows = group_rows
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._writer: Any = None

    def __enter__(self) -> Self:
        import pyarrow.parquet as pq

        self._writer = pq.ParquetWriter(
            self._unfinished,
            _schema(named=True),
            use_dictionary=["candidate", "corpus"],
            **_writer_options(),
        )
        return self

    def append(self, records: TokenRecords, *, candidate: str, corpus: str) -> None:
        """Add records; they reach the file a row group at a time."""
        import pyarrow as pa

        names = [
            pa.repeat(pa.scalar(name, pa.string()), len(records)) for name in (candidate, corpus)
        ]
        self._pending.append(
            pa.Table.from_arrays(names + _arrays(records), schema=_schema(named=True))
        )
        self._pending_rows += len(records)
        if self._pending_rows >= self._group_rows:
            self._write_groups(keep_rest=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._write_groups(keep_rest=False)
            self._writer.close()
            if kind is None:
                self._unfinished.replace(self._path)
        finally:
            self._unfinished.unlink(missing_ok=True)

    def _write_groups(self, *, keep_rest: bool) -> None:
        import pyarrow as pa

        if not self._pending:
            return
        # One contiguous table: nothing about the appended pieces can then reach the encoder.
        table = pa.concat_tables(self._pending).combine_chunks()
        end = table.num_rows - table.num_rows % self._group_rows if keep_rest else table.num_rows
        for start in range(0, end, self._group_rows):
            self._writer.write_table(table.slice(start, min(self._group_rows, end - start)))
        rest = table.slice(end)
        self._pending = [rest] if rest.num_rows else []
        self._pending_rows = rest.num_rows


def _arrays(records: TokenRecords) -> list[Any]:
    import pyarrow as pa

    # from_pandas=False: NaN is a value of ours, not a missing one.
    return [
        pa.array(np.ascontiguousarray(getattr(records, name)), from_pandas=False)
        for name in COLUMNS
    ]


def _schema(*, named: bool = False) -> Any:  # noqa: ANN401 -- pyarrow carries no types
    import pyarrow as pa

    names = [pa.field(name, pa.string(), nullable=False) for name in ("candidate", "corpus")]
    columns = [
        pa.field(name, pa.from_numpy_dtype(dtype), nullable=False)
        for name, dtype in COLUMNS.items()
    ]
    return pa.schema(names + columns if named else columns)


def _writer_options() -> dict[str, Any]:
    encodings = {
        name: "BYTE_STREAM_SPLIT" if dtype.kind == "f" else "PLAIN"
        for name, dtype in COLUMNS.items()
    }
    return {
        "column_encoding": encodings | dict.fromkeys(("chunk", "position"), "DELTA_BINARY_PACKED"),
        "compression": "zstd",
        "compression_level": _ZSTD_LEVEL,
        "store_schema": False,
        "write_page_checksum": True,
    }


def _check_footer(file: Any, *, max_rows: int, name: str) -> None:  # noqa: ANN401 -- pyarrow, untyped
    footer = file.metadata
    if not 0 <= footer.num_rows <= max_rows:
        raise FormatError(f"{name}: claims {footer.num_rows} records, at most {max_rows} fit")
    if not file.schema_arrow.equals(_schema()):
        found = ", ".join(f"{field.name} {field.type}" for field in file.schema_arrow)[:300]
        raise FormatError(f"{name}: columns are not those of token records: {found}")
    groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
    if sum(group.num_rows for group in groups) != footer.num_rows:
        raise FormatError(f"{name}: row groups do not add up to {footer.num_rows} records")
    for column in _column_chunks(groups):
        # Pages of fixed-width values need their width, plus headers; twice that is generous.
        if not 0 <= column.total_uncompressed_size <= 16 * footer.num_rows + (1 << 16):
            raise FormatError(
                f"{name}: column {column.path_in_schema} claims {column.total_uncompressed_size} "
                f"bytes for {footer.num_rows} records"
            )


def _column_chunks(groups: Iterable[Any]) -> Iterator[Any]:
    for group in groups:
        for index in range(group.num_columns):
            yield group.column(index)
