"""Chunk means from tokens.parquet: the bits of the partials, and nothing believed unchecked."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_records import ROWS, records

from kldcloud.divergence.moments import INDEX, chunk_moments
from kldcloud.divergence.records import TokenRecords, TokenWriter
from kldcloud.divergence.tokens_file import read_chunk_means
from kldcloud.errors import FormatError

CHUNKS = 7
WHOSE = [("Q8_0", "wiki"), ("Q8_0", "code"), ("Q4_K_M", "wiki"), ("Q4_K_M", "code")]


def written(path: Path, found: dict[tuple[str, str], TokenRecords], group_rows: int) -> Path:
    with TokenWriter(path, group_rows=group_rows) as writer:
        for (candidate, corpus), each in found.items():
            writer.append(each, candidate=candidate, corpus=corpus)
    return path


def read(path: Path, rows: int) -> Any:
    with io.FileIO(path) as file:
        return read_chunk_means(file, rows=rows, name="tokens.parquet")


@pytest.mark.parametrize("group_rows", [10, 31, 100, 10_000])
def test_chunks_have_the_means_of_the_partials_however_rows_are_grouped(
    tmp_path: Path, group_rows: int
) -> None:
    found = {whose: records(CHUNKS, seed=at) for at, whose in enumerate(WHOSE)}
    means = read(written(tmp_path / "t", found, group_rows), len(WHOSE) * CHUNKS * ROWS)
    assert list(means) == WHOSE
    for whose, whole in found.items():
        moments = chunk_moments(whole)
        assert means[whose].sizes == tuple(each.count for each in moments)
        expected = [each.mean[INDEX["kld"]] for each in moments]
        assert means[whose].means.tolist() == expected


def test_another_number_of_records_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "t", {WHOSE[0]: records(CHUNKS)}, 100)
    with pytest.raises(FormatError, match=r"^tokens.parquet: holds 217 records, not 218$"):
        read(path, CHUNKS * ROWS + 1)


@pytest.mark.parametrize("change", ["gap", "nan", "null", "columns"])
def test_records_that_no_run_writes_are_refused(tmp_path: Path, change: str) -> None:
    whole = records(CHUNKS)
    if change == "gap":
        whole = replace(whole, chunk=np.where(whole.chunk > 2, whole.chunk + 1, whole.chunk))
    if change == "nan":
        whole.kld[3] = np.nan
    path = written(tmp_path / "t", {WHOSE[0]: whole}, 100)
    table = pq.read_table(path)
    if change == "null":
        names = table.column("candidate").to_pylist()
        names[5] = None
        table = table.set_column(0, "candidate", pa.array(names, pa.string()))
    if change == "columns":
        table = table.drop_columns(["kld"])
    if change in {"null", "columns"}:
        pq.write_table(table, path)
    with pytest.raises(FormatError) as caught:
        read(path, CHUNKS * ROWS)
    assert (
        str(caught.value)
        == {
            "gap": "tokens.parquet: its chunks are not all there, in order and finite",
            "nan": "tokens.parquet: its chunks are not all there, in order and finite",
            "null": "tokens.parquet: has records without a value",
            "columns": "tokens.parquet: its columns are not those of token records",
        }[change]
    )


def test_a_file_that_unpacks_to_far_more_than_its_rows_is_refused_unread(tmp_path: Path) -> None:
    rows = CHUNKS * ROWS
    table = pa.table(
        {
            "candidate": ["Q8_0"] * (rows - 1) + ["x" * (64 << 20)],
            "corpus": ["wiki"] * rows,
            "chunk": pa.array([0] * rows, pa.int32()),
            "kld": [0.0] * rows,
        }
    )
    pq.write_table(table, tmp_path / "bomb", compression="zstd")
    assert (tmp_path / "bomb").stat().st_size < 1 << 20
    with pytest.raises(FormatError, match=r"^tokens.parquet: a column claims 67,\d\d\d,\d\d\d byt"):
        read(tmp_path / "bomb", rows)


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    with pytest.raises(FormatError, match=r"^tokens.parquet: not readable as Parquet: "):
        read(tmp_path / "t", 1)
