"""An object as an open file: ranges as they are asked for, and no byte more."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from kldcloud.errors import FormatError, StoreError
from kldcloud.store import ObjectInfo, open_store
from kldcloud.store.object_file import ObjectFile

DATA = bytes(range(256)) * 10


@pytest.fixture
def file(tmp_path: Path) -> ObjectFile:
    store = open_store(str(tmp_path))
    store.write_new("runs/x", DATA)
    return ObjectFile(store, ObjectInfo("runs/x", len(DATA)))


def test_it_reads_as_the_same_bytes_in_memory_do(file: ObjectFile) -> None:
    memory = io.BytesIO(DATA)
    steps = [(10, os.SEEK_SET), (-5, os.SEEK_CUR), (-8, os.SEEK_END), (3, os.SEEK_END), (0, 0)]
    for offset, whence in steps:
        assert file.seek(offset, whence) == memory.seek(offset, whence)
        assert file.tell() == memory.tell()
        for count in (0, 1, 7, 5000):
            assert file.read(count) == memory.read(count)
    assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
    file.seek(0)
    assert file.read() == DATA


def test_a_read_ahead_wraps_it_as_any_file(file: ObjectFile) -> None:
    with io.BufferedReader(file, 64) as buffered:
        buffered.seek(100)
        assert buffered.read(10) == DATA[100:110]


def test_an_object_that_is_gone_or_shorter_than_listed_is_an_error(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with pytest.raises(StoreError):
        ObjectFile(store, ObjectInfo("runs/none", 10)).read(4)
    store.write_new("runs/y", b"123")
    with pytest.raises(FormatError):
        ObjectFile(store, ObjectInfo("runs/y", 10)).read(4)
