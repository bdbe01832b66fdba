"""Digests, checked against the published test vectors of FIPS 180-2."""

from __future__ import annotations

from pathlib import Path

import pytest

from kldcloud.errors import UserError
from kldcloud.store import sha256_bytes, sha256_file

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
MILLION_A = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"


def test_bytes_and_views_have_the_published_digest() -> None:
    assert sha256_bytes(b"abc") == ABC
    assert sha256_bytes(memoryview(bytearray(b"xabcx"))[1:4]) == ABC


def test_a_file_has_the_published_digest(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"a" * 1_000_000)
    assert sha256_file(path) == MILLION_A


def test_progress_adds_up_to_the_size_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "zeros"
    path.write_bytes(bytes(9_000_000))
    steps: list[int] = []
    assert sha256_file(path, steps.append) == sha256_bytes(bytes(9_000_000))
    assert sum(steps) == 9_000_000
    assert len(steps) > 1


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*absent"):
        sha256_file(tmp_path / "absent")
