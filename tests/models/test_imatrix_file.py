"""Files of importance matrices: both of llama-imatrix, ours, and those that only claim to be."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from kldcloud.errors import FormatError, KldcloudError, UserError
from kldcloud.models.gguf_header import read_gguf_header
from kldcloud.models.imatrix_file import (
    Importance,
    ImportanceMatrix,
    check_fit,
    imatrix_bytes,
    read_imatrix,
)
from tests.golden.cases import GOLDEN
from tests.models.layer_inputs import tiny_moe
from tests.tiny_models import tiny_pair

GOLDENS = GOLDEN / "imatrix"


def entry(columns: int, rows: int = 7, parts: int = 1) -> Importance:
    sums = np.arange(1, columns * parts + 1, dtype=np.float32) / 3
    return Importance(sums, np.full(parts, rows, np.int64))


def matrix(**entries: Importance) -> ImportanceMatrix:
    return ImportanceMatrix(entries, 5, 128)


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_the_bytes_are_those_of_llama_imatrix(name: str) -> None:
    path = GOLDENS / f"{name}.gguf"
    assert imatrix_bytes(read_imatrix(path), "text.txt") == path.read_bytes()


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_both_kinds_of_file_say_the_same(name: str) -> None:
    new, old = read_imatrix(GOLDENS / f"{name}.gguf"), read_imatrix(GOLDENS / f"{name}.dat")
    assert (new.chunks, new.context) == (4, 128)
    assert (old.chunks, old.context) == (4, 0)
    assert new.entries.keys() == old.entries.keys()
    for tensor, each in new.entries.items():
        np.testing.assert_allclose(old.entries[tensor].weights(), each.weights(), rtol=1e-6)


def test_gguf_py_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    entries = {"blk.1.b.weight": entry(6, parts=3), "blk.0.a.weight": entry(5)}
    path.write_bytes(imatrix_bytes(ImportanceMatrix(entries, 5, 128), "a text"))
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["a text"]
    assert reader.fields["imatrix.chunk_count"].contents() == 5
    assert reader.fields["imatrix.chunk_size"].contents() == 128
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert list(found) == [
        "blk.0.a.weight.in_sum2",
        "blk.0.a.weight.counts",
        "blk.1.b.weight.in_sum2",
        "blk.1.b.weight.counts",
    ]
    for name, each in entries.items():
        sums, counts = found[f"{name}.in_sum2"], found[f"{name}.counts"]
        assert sums.tensor_type == counts.tensor_type == gguf.GGMLQuantizationType.F32
        assert np.array_equal(sums.data.reshape(-1), each.sums)
        assert counts.data.reshape(-1).tolist() == each.counts.tolist()
    assert list(found["blk.1.b.weight.in_sum2"].shape) == [6, 3]


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    made = matrix(a=entry(5), b=entry(8, parts=4))
    path.write_bytes(imatrix_bytes(made, ""))
    found = read_imatrix(path)
    assert (found.chunks, found.context) == (5, 128)
    for name, each in made.entries.items():
        assert np.array_equal(found.entries[name].sums, each.sums)
        assert np.array_equal(found.entries[name].counts, each.counts)


def test_weights_are_means_and_1_where_nothing_came() -> None:
    sums = np.array([2, 4, 0, 0, 9, 12], np.float32)
    found = Importance(sums, np.array([2, 0, 3])).weights()
    assert found.dtype == np.float32
    assert found.tolist() == [1, 2, 1, 1, 3, 4]


def with_tensors(path: Path, kind: str | None = "imatrix", **tensors: np.ndarray) -> Path:
    """A GGUF with these tensors, written by gguf-py."""
    writer = gguf.GGUFWriter(path, "llama")
    if kind is not None:
        writer.add_type(kind)
    for name, values in tensors.items():
        writer.add_tensor(name.replace("__", "."), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


ONE = np.ones((1, 1), np.float32)
FOUR = np.ones((1, 4), np.float32)


@pytest.mark.parametrize(
    ("tensors", "wrong"),
    [
        ({}, "holds no importance of any weight"),
        ({"a__in_sum2": FOUR}, "'a.in_sum2' has no counts beside it"),
        ({"a__counts": ONE}, "'a.counts' has no sums beside it"),
        ({"a": FOUR}, "'a' has no sums beside it"),
        ({"a__in_sum2": FOUR.astype(np.float16), "a__counts": ONE}, "'a.in_sum2' is F16, not F32"),
        ({"a__in_sum2": FOUR, "a__counts": np.ones((3, 1), np.float32)}, "4 columns in 3 parts"),
        ({"a__in_sum2": -FOUR, "a__counts": ONE}, "no sum of squares has"),
        ({"a__in_sum2": FOUR * np.nan, "a__counts": ONE}, "no sum of squares has"),
        ({"a__in_sum2": FOUR * np.inf, "a__counts": ONE}, "no sum of squares has"),
        ({"a__in_sum2": FOUR, "a__counts": -ONE}, "no sum of squares has"),
        ({"a__in_sum2": FOUR, "a__counts": ONE / 2}, "the counts of 'a' are no whole numbers"),
        ({"a__in_sum2": FOUR, "a__counts": ONE * np.nan}, "the counts of 'a' are no whole numbers"),
        ({"a__in_sum2": FOUR, "a__counts": ONE * 1e30}, "the counts of 'a' are no whole numbers"),
    ],
)
def test_a_gguf_that_contradicts_itself_is_refused(
    tmp_path: Path, tensors: dict[str, np.ndarray], wrong: str
) -> None:
    path = with_tensors(tmp_path / "imatrix.gguf", **tensors)
    with pytest.raises(FormatError) as caught:
        read_imatrix(path)
    assert wrong in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [None, "model"])
def test_a_gguf_of_something_else_is_refused(tmp_path: Path, kind: str | None) -> None:
    path = with_tensors(tmp_path / "model.gguf", kind, a__in_sum2=FOUR, a__counts=ONE)
    with pytest.raises(FormatError, match="is a GGUF, but of no importance matrix"):
        read_imatrix(path)


def test_an_importance_matrix_is_no_model() -> None:
    with pytest.raises(FormatError, match="names no architecture"):
        read_gguf_header(GOLDENS / "dense.gguf")


def dat(*records: bytes, count: int | None = None, tail: bytes = b"") -> bytes:
    return struct.pack("<i", len(records) if count is None else count) + b"".join(records) + tail


def record(name: bytes, chunks: int, values: list[float], claims: int | None = None) -> bytes:
    claimed = len(values) if claims is None else claims
    head = struct.pack("<i", len(name)) + name + struct.pack("<ii", chunks, claimed)
    return head + np.array(values, "<f4").tobytes()


GOOD = record(b"a", 2, [2.0, 4.0])
HUGE = (1 << 31) - 1


def test_an_older_file_is_read_with_and_without_its_tail(tmp_path: Path) -> None:
    for tail, chunks in ((b"", 0), (struct.pack("<ii", 9, 4) + b"text", 9)):
        path = tmp_path / "imatrix.dat"
        path.write_bytes(dat(GOOD, record(b"b", 0, [5.0]), tail=tail))
        found = read_imatrix(path)
        assert found.chunks == chunks
        assert found.entries["a"].weights().tolist() == [1, 2]
        assert found.entries["b"].weights().tolist() == [5], "without chunks they are means already"


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (b"", "ends within the number of entries"),
        (b"abc", "ends within the number of entries"),
        (b"Once upon a time", "is neither a GGUF nor an older importance matrix"),
        (dat(count=0), "is neither a GGUF nor an older importance matrix"),
        (dat(count=-1), "is neither a GGUF nor an older importance matrix"),
        (dat(GOOD, count=HUGE), "is neither a GGUF nor an older importance matrix"),
        (dat(GOOD, count=2), "ends within entry 1"),
        (dat(GOOD)[:-1], "ends within entry 0"),
        (dat(record(b"", 1, [1.0])), "claims a name of 0 bytes"),
        (dat(struct.pack("<i", -5)), "claims a name of -5 bytes"),
        (dat(struct.pack("<i", HUGE)), "claims a name of 2,147,483,647 bytes"),
        (dat(record(b"\xff", 1, [1.0])), "a name that is not UTF-8"),
        (dat(record(b"a", 1, [1.0], HUGE)), "ends within entry 0"),
        (dat(record(b"a", 1, [1.0], 0)), "'a' claims 0 columns"),
        (dat(record(b"a", 1, [1.0], -1)), "'a' claims -1 columns"),
        (dat(record(b"a", -1, [1.0])), "columns of -1 chunks"),
        (dat(GOOD, GOOD), "the importance of 'a' twice"),
        (dat(record(b"a", 1, [float("nan")])), "no sum of squares has"),
        (dat(record(b"a", 1, [-1.0])), "no sum of squares has"),
    ],
)
def test_an_older_file_that_is_not_one_is_refused(tmp_path: Path, data: bytes, wrong: str) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        read_imatrix(path)
    assert wrong in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["moe.gguf", "moe.dat"])
def test_no_damage_costs_more_than_an_error_line(tmp_path: Path, name: str) -> None:
    good = (GOLDENS / name).read_bytes()
    random = np.random.default_rng(0)
    path = tmp_path / name
    refused = 0
    for _ in range(300):
        data = bytearray(good)
        for at in random.integers(0, min(len(data), 4096), 3):
            data[at] = random.integers(256)
        path.write_bytes(data[: random.integers(len(data) // 2, len(data) + 1)])
        message = ""
        try:
            read_imatrix(path)
        except KldcloudError as error:
            message = str(error)
        assert "\n" not in message
        refused += bool(message)
    assert refused > 100


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.dat: No such file"):
        read_imatrix(tmp_path / "none.dat")
    with pytest.raises(UserError, match="Is a directory"):
        read_imatrix(tmp_path)


def test_a_file_larger_than_any_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    with path.open("wb") as file:
        file.truncate((4 << 30) + 1)
    with pytest.raises(FormatError, match="more than an importance matrix ever has"):
        read_imatrix(path)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda e: e | {"blk.9.x.weight": entry(64)}, "'blk.9.x.weight', which the model lacks"),
        (
            lambda e: e | {"blk.0.attn_q.weight": entry(65)},
            "65 columns in 1 parts for 'blk.0.attn_q.weight', of which the model has 64 in 1",
        ),
        (
            lambda e: e | {"blk.0.attn_q.weight": entry(32, parts=2)},
            "64 columns in 2 parts for 'blk.0.attn_q.weight', of which the model has 64 in 1",
        ),
        (
            lambda e: e | {"blk.0.ffn_up_exps.weight": entry(64)},
            "64 columns in 1 parts for 'blk.0.ffn_up_exps.weight', of which the model has 256 in 4",
        ),
    ],
)
def test_a_matrix_of_another_model_is_refused_by_name(
    tmp_path: Path, change: Callable[[dict[str, Importance]], dict[str, Importance]], wrong: str
) -> None:
    header = read_gguf_header(tiny_moe(tmp_path / "moe.gguf"))
    good = read_imatrix(GOLDENS / "moe.gguf")
    check_fit(good, header, "mine.gguf")
    check_fit(read_imatrix(GOLDENS / "moe.dat"), header, "mine.dat")
    with pytest.raises(FormatError) as caught:
        check_fit(ImportanceMatrix(change(dict(good.entries)), 4, 128), header, "mine.gguf")
    assert str(caught.value).startswith("mine.gguf: has ")
    assert wrong in str(caught.value)


def test_a_matrix_of_experts_is_not_one_of_a_dense_model(tmp_path: Path) -> None:
    header = read_gguf_header(tiny_pair(tmp_path, vocabulary=320, bos=True).base)
    check_fit(read_imatrix(GOLDENS / "dense.gguf"), header, "dense")
    with pytest.raises(
        FormatError, match=r"'blk\.0\.ffn_down_exps\.weight', which the model lacks"
    ):
        check_fit(read_imatrix(GOLDENS / "moe.gguf"), header, "moe")
