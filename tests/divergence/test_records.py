"""Token records: what is derived from them, and that Parquet gives back what it was given."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_records import ROWS, records

from kldcloud.divergence.records import (
    COLUMNS,
    TokenRecords,
    TokenWriter,
    concatenate,
    from_parquet,
    to_parquet,
)
from kldcloud.errors import FormatError


def same(a: TokenRecords, b: TokenRecords) -> bool:
    return all(
        getattr(a, name).dtype == dtype
        and np.array_equal(getattr(a, name), getattr(b, name), equal_nan=dtype.kind == "f")
        for name, dtype in COLUMNS.items()
    )


def arrow_table(source: TokenRecords) -> pa.Table:
    fields = [
        pa.field(name, pa.from_numpy_dtype(dtype), nullable=False)
        for name, dtype in COLUMNS.items()
    ]
    return pa.Table.from_arrays(
        [pa.array(getattr(source, name), from_pandas=False) for name in COLUMNS],
        schema=pa.schema(fields),
    )


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, store_schema=False)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def test_derived_columns_match_their_definitions() -> None:
    source = records(3)
    for row in (0, 17, len(source) - 1):
        expected = math.exp(-source.nll[row]) - math.exp(-source.nll_base[row])
        assert source.probability_change[row] == pytest.approx(expected, abs=1e-15)
        assert source.same_top[row] == (source.top[row] == source.top_base[row])
        single = np.float32(math.exp(-float(source.llama_nll[row]))) - np.float32(
            math.exp(-float(source.llama_nll_base[row]))
        )
        assert source.llama_probability_change[row] == single
    assert source.llama_probability_change.dtype == np.float32


def test_selecting_chunks_and_concatenating_gives_the_records_back() -> None:
    source = records(4)
    pieces = list(source.chunks())
    assert [piece.chunk[0] for piece in pieces] == [0, 1, 2, 3]
    assert same(concatenate(pieces), source)
    assert len(concatenate([])) == 0


def test_a_column_of_another_type_or_length_is_refused() -> None:
    source = records(1)
    with pytest.raises(TypeError, match="kld"):
        replace(source, kld=source.kld.astype(np.float32))
    with pytest.raises(TypeError, match="top"):
        replace(source, top=source.top[1:])


@pytest.mark.parametrize("llama", [True, False])
def test_parquet_returns_every_bit_and_the_metadata(llama: bool) -> None:
    source = records(5, llama=llama)
    file = from_parquet(to_parquet(source, {"b": b"\x00\xff", "a": b"1"}))
    assert same(file.records, source)
    assert file.metadata == {"a": b"1", "b": b"\x00\xff"}
    assert file.records.has_llama() is llama


def test_the_same_records_give_the_same_parquet_bytes() -> None:
    one = to_parquet(records(3), {"a": b"1", "b": b"2"})
    two = to_parquet(concatenate(list(records(3).chunks())), {"b": b"2", "a": b"1"})
    assert one == two
    assert one != to_parquet(records(3, seed=1), {"a": b"1", "b": b"2"})


def test_records_that_are_half_llama_are_refused() -> None:
    source = records(2)
    source.llama_kld[3] = np.nan
    with pytest.raises(FormatError, match="some positions"):
        source.has_llama()


def test_more_rows_than_allowed_are_refused_before_decoding() -> None:
    data = to_parquet(records(4, rows=10), {})
    assert len(from_parquet(data, max_rows=40).records) == 40
    with pytest.raises(FormatError, match="claims 40 records, at most 39"):
        from_parquet(data, max_rows=39)


def test_unordered_or_repeated_positions_are_refused() -> None:
    source = records(2)
    for order in ([1, 0, 2], [0, 0, 1], [ROWS, 0, 1]):
        picked = source.select(np.array(order))
        with pytest.raises(FormatError, match=r"shard 3: .* ascending"):
            from_parquet(to_parquet(picked, {}), name="shard 3")
    negative = replace(source, position=source.position - np.int32(100))
    with pytest.raises(FormatError, match="ascending"):
        from_parquet(to_parquet(negative, {}))


def test_another_schema_is_refused() -> None:
    table = arrow_table(records(1))
    assert same(from_parquet(parquet(table)).records, records(1))
    for wrong in (
        table.drop_columns(["top"]),
        table.append_column("extra", table.column("kld")),
        table.rename_columns(["chunk2", *table.column_names[1:]]),
        table.set_column(3, "kld", table.column("llama_nll")),
        table.cast(pa.schema([field.with_nullable(True) for field in table.schema])),
    ):
        with pytest.raises(FormatError, match="columns are not those"):
            from_parquet(parquet(wrong))


def test_damaged_bytes_end_in_a_format_error_or_in_ordered_records() -> None:
    data = to_parquet(records(3), {"key": b"value" * 20})
    for length in (0, 3, 8, len(data) // 2, len(data) - 1):
        with pytest.raises(FormatError):
            from_parquet(data[:length])
    rng = np.random.default_rng(5)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        damaged[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        try:
            assert from_parquet(bytes(damaged)).records.is_ordered()
        except FormatError:
            refused += 1
    # Pages carry checksums; a few bits of the footer change nothing that is read.
    assert refused > 200


def test_pages_larger_than_the_rows_explain_are_refused() -> None:
    table = arrow_table(records(1, rows=10_000))
    sink = pa.BufferOutputStream()
    # A page a value: legal, and thirty times the size that token records have.
    pq.write_table(
        table, sink, store_schema=False, use_dictionary=False, data_page_size=1, write_batch_size=1
    )
    with pytest.raises(FormatError, match=r"column chunk claims .* bytes for 10000 records"):
        from_parquet(sink.getvalue().to_pybytes())


def test_tokens_parquet_does_not_depend_on_how_it_was_appended(tmp_path: Path) -> None:
    source = records(7)
    for name, pieces in (("whole", [source]), ("pieces", list(source.chunks()))):
        with TokenWriter(tmp_path / name, group_rows=50) as writer:
            for piece in pieces:
                writer.append(piece, candidate="q4", corpus="wiki")
            writer.append(source, candidate="q8", corpus="wiki")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "pieces").read_bytes()
    table = pq.read_table(tmp_path / "whole")
    assert table.column_names == ["candidate", "corpus", *COLUMNS]
    assert table.column("candidate").to_pylist() == ["q4"] * len(source) + ["q8"] * len(source)
    assert np.array_equal(table.column("kld").to_numpy()[: len(source)], source.kld)
    file = pq.ParquetFile(tmp_path / "whole").metadata
    assert [file.row_group(i).num_rows for i in range(file.num_row_groups)] == [50] * 8 + [34]
    assert "PLAIN_DICTIONARY" in str(file.row_group(0).column(0).encodings) or (
        "RLE_DICTIONARY" in file.row_group(0).column(0).encodings
    )


def test_an_interrupted_tokens_parquet_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with TokenWriter(tmp_path / "tokens.parquet", group_rows=10) as writer:
            writer.append(records(1), candidate="q4", corpus="wiki")
            assert list(tmp_path.iterdir()) != []
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
