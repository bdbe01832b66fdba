"""Objects of a real S3 server arrive whole, and once for each version."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from store_server import S3Server

from kldcloud.errors import StoreError
from kldcloud.models.part_file import complete_part
from kldcloud.models.s3_download import download_object
from kldcloud.models.sources import fetch, read_text
from kldcloud.spec.uri import SourceUri, parse_uri

# More than one range, and not a whole number of them.
LARGE = (8 << 20) * 2 + 12345


@pytest.fixture
def put(
    s3_server: S3Server, s3_store_uri: Callable[[str], str]
) -> Callable[[str, bytes], SourceUri]:
    """Put an object under a key of this test's own; returns where it is."""
    prefix = s3_store_uri("sources")

    def put_object(name: str, data: bytes) -> SourceUri:
        uri = parse_uri(f"{prefix}/{name}")
        s3_server.client().put_object(Bucket=uri.container, Key=uri.path, Body=data)
        return uri

    return put_object


def test_an_object_arrives_whole_and_is_fetched_once(
    put: Callable[[str, bytes], SourceUri], tmp_path: Path
) -> None:
    data = os.urandom(LARGE)
    uri = put("models/my model (1).gguf", data)
    told: list[tuple[int, int]] = []
    path = fetch(uri, cache=tmp_path, progress=lambda *step: told.append(step))
    assert path.read_bytes() == data
    assert path.name == "my model (1).gguf"
    assert told[-1] == (LARGE, LARGE)
    told.clear()
    assert fetch(uri, cache=tmp_path, progress=lambda *step: told.append(step)) == path
    assert told == []


def test_another_version_of_the_object_is_another_file(
    put: Callable[[str, bytes], SourceUri], tmp_path: Path
) -> None:
    first = fetch(put("m.gguf", b"one"), cache=tmp_path)
    second = fetch(put("m.gguf", b"two"), cache=tmp_path)
    assert (first.read_bytes(), second.read_bytes()) == (b"one", b"two")


def test_a_download_that_was_cut_off_goes_on(
    put: Callable[[str, bytes], SourceUri], tmp_path: Path
) -> None:
    data = os.urandom(LARGE)
    uri = put("m.gguf", data)
    whole = fetch(uri, cache=tmp_path)
    whole.unlink()
    whole.with_name("m.gguf.part").write_bytes(data[: LARGE // 2])
    told: list[tuple[int, int]] = []
    fetch(uri, cache=tmp_path, progress=lambda *step: told.append(step))
    assert told[0] == (LARGE // 2, LARGE)
    assert whole.read_bytes() == data


def test_two_versions_never_meet_in_one_file(
    put: Callable[[str, bytes], SourceUri], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = put("m.gguf", b"first")

    def replace_then_read(
        target: Path, size: int, read: Callable[[int, int], bytearray], progress: object
    ) -> Path:
        del progress
        put("m.gguf", b"other")
        return complete_part(target, size, read)

    # The object is replaced between the question for its version and the reading of it.
    monkeypatch.setattr("kldcloud.models.s3_download.complete_part", replace_then_read)
    with pytest.raises(StoreError) as caught:
        download_object(uri.container, uri.path, cache=tmp_path)
    assert str(caught.value) == (
        f"{uri} changed while it was downloaded; run the same command again"
    )
    assert [each for each in tmp_path.rglob("m.gguf") if each.is_file()] == []


def test_a_text_and_an_empty_object_can_be_read(
    put: Callable[[str, bytes], SourceUri], tmp_path: Path
) -> None:
    assert read_text(put("a.txt", "caf\u00e9\r\n".encode()), cache=tmp_path) == "caf\u00e9\r\n"
    assert read_text(put("empty.txt", b""), cache=tmp_path) == ""


def test_an_object_that_is_not_there_is_refused_in_one_line(
    put: Callable[[str, bytes], SourceUri], tmp_path: Path
) -> None:
    uri = put("m.gguf", b"x")
    with pytest.raises(StoreError) as caught:
        download_object(uri.container, "no/such.gguf", cache=tmp_path)
    assert str(caught.value) == f"no object no/such.gguf in s3://{uri.container}"
