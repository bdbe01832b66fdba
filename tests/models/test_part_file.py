"""A download that is cut off goes on where it stopped, and only a whole one gets the name."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from kldcloud.errors import StoreError
from kldcloud.models import part_file
from kldcloud.models.part_file import complete_part

DATA = bytes(range(256)) * 40


class Source:
    """Bytes that can be cut off, and that remember what was asked of them."""

    def __init__(self, data: bytes, *, cut_at: int | None = None) -> None:
        self.data = data
        self.cut_at = cut_at
        self.asked: list[tuple[int, int]] = []

    def read(self, start: int, count: int) -> bytes:
        if self.cut_at is not None and start >= self.cut_at:
            raise StoreError("the connection was cut")
        self.asked.append((start, count))
        return self.data[start : start + count]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_file, "WINDOW_BYTES", 1000)


def test_a_whole_download_gets_the_name_and_is_not_fetched_again(tmp_path: Path) -> None:
    source, target = Source(DATA), tmp_path / "a" / "m.gguf"
    told: list[tuple[int, int]] = []
    complete_part(target, len(DATA), source.read, lambda *step: told.append(step))
    assert target.read_bytes() == DATA
    assert told[0] == (0, len(DATA))
    assert told[-1] == (len(DATA), len(DATA))
    assert told == sorted(told)
    complete_part(target, len(DATA), Source(DATA, cut_at=0).read)
    assert [each.name for each in target.parent.iterdir()] == ["m.gguf"]


def test_a_download_that_was_cut_off_goes_on_where_it_stopped(tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    with pytest.raises(StoreError, match="cut"):
        complete_part(target, len(DATA), Source(DATA, cut_at=3000).read)
    assert not target.exists()
    source = Source(DATA)
    complete_part(target, len(DATA), source.read)
    assert source.asked[0] == (3000, 1000)
    assert target.read_bytes() == DATA


def test_a_part_longer_than_the_file_is_started_again(tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    (tmp_path / "m.gguf.part").write_bytes(b"x" * (len(DATA) + 1))
    complete_part(target, len(DATA), Source(DATA).read)
    assert target.read_bytes() == DATA


def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    assert complete_part(tmp_path / "m", 0, Source(b"").read).read_bytes() == b""


def test_of_several_that_want_the_same_file_one_fetches_it(tmp_path: Path) -> None:
    source, target = Source(DATA), tmp_path / "m.gguf"
    threads = [
        threading.Thread(target=complete_part, args=(target, len(DATA), source.read))
        for _ in range(8)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert target.read_bytes() == DATA
    assert sum(count for _, count in source.asked) == len(DATA)


def test_a_file_larger_than_the_disk_is_refused_before_it_is_fetched(tmp_path: Path) -> None:
    source = Source(DATA)
    with pytest.raises(StoreError, match=r"a download needs 1,125,899,906,842,624 bytes and"):
        complete_part(tmp_path / "m", 1 << 50, source.read)
    assert source.asked == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError) as caught:
        complete_part(tmp_path / "file" / "sub" / "m", 1, Source(b"x").read)
    assert str(caught.value) == (
        f"{tmp_path}/file/sub: cannot keep a download there: Not a directory; "
        "set KLDCLOUD_CACHE to a folder with room"
    )
