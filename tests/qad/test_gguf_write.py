"""A GGUF of our own hand is what the gguf package and our own reader read."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from kldcloud.errors import FormatError, StoreError
from kldcloud.models.gguf_header import read_gguf_header, read_tensor_bytes
from kldcloud.qad.gguf_retype import NewTensor
from kldcloud.qad.gguf_write import Value, write_gguf

METADATA: dict[str, Value] = {
    "general.architecture": "llama",
    "a.whole": 4_000_000_000,
    "a.real": 1e-5,
    "a.yes": True,
    "a.no": False,
    "a.text": "naïve → 😀",
    "a.texts": ("", "é", "x" * 300),
    "a.wholes": np.array([-1, 2, 3], np.int32),
    "a.reals": np.array([0.5, -1.5], np.float32),
    "a.flags": np.array([True, False, True]),
}
MATRIX = np.arange(15, dtype=np.float32).reshape(3, 5)
HALVES = np.arange(7, dtype=np.float16)


def tensors() -> list[NewTensor]:
    return [
        NewTensor("halves", (7,), "F16", lambda: HALVES),
        NewTensor("matrix", (5, 3), "F32", lambda: MATRIX),
    ]


def test_the_gguf_package_reads_it(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    write_gguf(tmp_path / "a.gguf", METADATA, tensors(), progress=lambda *each: told.append(each))
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    for key, wanted in METADATA.items():
        found = reader.fields[key].contents()
        if isinstance(wanted, np.ndarray):
            assert found == wanted.tolist()
        elif isinstance(wanted, tuple):
            assert found == list(wanted)
        else:
            assert found == (float(np.float32(wanted)) if isinstance(wanted, float) else wanted)
            assert type(found) is type(wanted)
    halves, matrix = reader.tensors
    np.testing.assert_array_equal(halves.data, HALVES)
    np.testing.assert_array_equal(matrix.data, MATRIX)
    assert told == [(14, 74), (74, 74)]


def test_our_own_reader_agrees(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, METADATA, tensors())
    header = read_gguf_header(path)
    assert list(header.metadata) == list(METADATA)
    assert header.tensors["matrix"].shape == (5, 3)
    stored = read_tensor_bytes(path, header.tensors["matrix"])
    assert stored.tobytes() == MATRIX.tobytes()
    assert not path.stat().st_size % 32


def test_nothing_is_left_of_a_file_that_is_not_good(tmp_path: Path) -> None:
    short = [NewTensor("matrix", (5, 3), "F32", lambda: MATRIX[:2])]
    with pytest.raises(FormatError, match="'matrix' takes 60 bytes, and 40 came"):
        write_gguf(tmp_path / "a.gguf", METADATA, short)

    def refuse(part: Path) -> None:
        assert part.exists()
        raise FormatError("no")

    with pytest.raises(FormatError, match="no"):
        write_gguf(tmp_path / "a.gguf", METADATA, tensors(), check=refuse)
    with pytest.raises(FormatError, match="is no text"):
        write_gguf(tmp_path / "a.gguf", {"a": "\ud800"}, [])
    assert not list(tmp_path.iterdir())
    with pytest.raises(StoreError, match="cannot be written"):
        write_gguf(Path("/proc/none/a.gguf"), METADATA, tensors())
