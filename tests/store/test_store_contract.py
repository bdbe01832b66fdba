"""What every store promises, on a real folder and on a real S3 server."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kldcloud.errors import FormatError, StoreError
from kldcloud.store import ObjectInfo, Store, open_store, sha256_bytes

MIB = 1 << 20

HOSTILE_KEYS = [
    "",
    "/",
    "/etc/passwd",
    "..",
    "../outside",
    "a/../../outside",
    "a/./b",
    "a//b",
    "a/",
    ".tmp/x",
    "a/.hidden",
    "-rf",
    "a b",
    "a\\b",
    "a\0b",
    "a\n",
    "a?b",
    "é",
    "x" * 201,
    "/".join(["x" * 100] * 10),
]


def noise(size: int) -> bytes:
    """Bytes with no period: two ranges that changed places would show."""
    return hashlib.shake_128(b"kldcloud").digest(size)


def test_an_object_reads_back_as_it_was_written(store: Store) -> None:
    assert store.size("runs/r1/plan.json") is None
    assert store.write_new("runs/r1/plan.json", b"{}")
    assert store.read("runs/r1/plan.json") == b"{}"
    assert store.size("runs/r1/plan.json") == 2


def test_an_empty_object_is_an_object(store: Store) -> None:
    assert store.write_new("empty", b"")
    assert store.size("empty") == 0
    assert store.read("empty", sha256=sha256_bytes(b"")) == b""
    store.read_into("empty", 0, memoryview(bytearray()))


def test_the_first_writer_wins_and_the_second_is_told(store: Store, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"third")
    assert store.write_new("p/0", b"first") is True
    assert store.write_new("p/0", b"first") is False
    assert store.write_new("p/0", b"second") is False
    assert store.write_new_file("p/0", other) is False
    assert store.read("p/0") == b"first"


def test_a_plain_write_replaces(store: Store) -> None:
    store.write("runs/r1/life/host", b"1")
    store.write("runs/r1/life/host", b"22")
    assert store.read("runs/r1/life/host") == b"22"


def test_deleting_twice_is_deleting_once(store: Store) -> None:
    store.write("a/b", b"1")
    store.delete("a/b")
    store.delete("a/b")
    store.delete("a/never/was")
    assert store.size("a/b") is None
    assert store.write_new("a/b", b"2")


def test_a_missing_object_is_named(store: Store) -> None:
    store.write("there", b"1")
    with pytest.raises(StoreError, match=r"no object runs/nope in "):
        store.read("runs/nope")
    with pytest.raises(StoreError, match=r"no object runs/nope in "):
        store.read_into("runs/nope", 0, memoryview(bytearray(1)))


def test_a_folder_of_objects_is_not_an_object(store: Store) -> None:
    store.write("a/b/c", b"1")
    assert store.size("a/b") is None
    with pytest.raises(StoreError, match="no object a/b in"):
        store.read("a/b")


def test_a_wrong_digest_is_refused(store: Store) -> None:
    store.write("x", b"0123456789")
    assert store.read("x", sha256=sha256_bytes(b"0123456789").upper()) == b"0123456789"
    with pytest.raises(FormatError, match=r"x in .* has SHA-256"):
        store.read("x", sha256=sha256_bytes(b"other"))
    out = memoryview(bytearray(3))
    store.read_into("x", 2, out, sha256=sha256_bytes(b"234"))
    with pytest.raises(FormatError, match="has SHA-256"):
        store.read_into("x", 3, out, sha256=sha256_bytes(b"234"))


def test_an_object_over_the_limit_is_refused(store: Store) -> None:
    store.write("x", b"12345")
    assert store.read("x", limit=5) == b"12345"
    with pytest.raises(FormatError, match="has 5 bytes, more than the 4 expected"):
        store.read("x", limit=4)


def test_a_range_fills_exactly_the_callers_buffer(store: Store) -> None:
    data = bytes(range(200))
    store.write("x", data)
    buffer = bytearray(b"\xff" * 120)
    store.read_into("x", 50, memoryview(buffer)[10:110])
    assert buffer == b"\xff" * 10 + data[50:150] + b"\xff" * 10


def test_a_range_fills_a_buffer_of_wider_items(store: Store) -> None:
    store.write("x", bytes(range(16)))
    buffer = bytearray(8)
    store.read_into("x", 4, memoryview(buffer).cast("H"))
    assert buffer == bytes(range(4, 12))


@pytest.mark.parametrize(("start", "count"), [(0, 11), (5, 6), (10, 1), (500, 1), (-1, 2)])
def test_a_range_past_the_end_is_refused(store: Store, start: int, count: int) -> None:
    store.write("x", b"0123456789")
    with pytest.raises(FormatError, match="x in "):
        store.read_into("x", start, memoryview(bytearray(count)))


def test_a_large_file_and_ranges_of_it_survive(store: Store, tmp_path: Path) -> None:
    # Above the multipart threshold, and no multiple of a part.
    data = noise(40 * MIB + 4)
    path = tmp_path / "large"
    path.write_bytes(data)
    assert store.write_new_file("models/large", path) is True
    assert store.write_new_file("models/large", path) is False
    assert store.size("models/large") == len(data) > 40 * MIB
    start, count = 1_234_567, 33 * MIB + 1
    out = bytearray(count)
    wanted = sha256_bytes(data[start : start + count])
    store.read_into("models/large", start, memoryview(out), sha256=wanted)
    assert sha256_bytes(store.read("models/large")) == sha256_bytes(data)
    with pytest.raises(FormatError, match="models/large"):
        store.read_into("models/large", len(data) - count + 1, memoryview(out))


def test_large_bytes_are_created_once_too(store: Store) -> None:
    data = memoryview(noise(33 * MIB))
    assert store.write_new("stages/s/00000.shard", data) is True
    assert store.write_new("stages/s/00000.shard", b"late") is False
    assert store.size("stages/s/00000.shard") == len(data)
    assert store.read("stages/s/00000.shard", sha256=sha256_bytes(data))


def test_listing_is_sorted_by_whole_key_and_bounded_by_prefix(store: Store) -> None:
    keys = ["r/a-b", "r/a.b", "r/a/x", "r/a/y/z", "r/ab", "r/a0", "s/1", "r2/1"]
    for key in keys:
        store.write(key, key.encode())
    everything = list(store.list(""))
    assert [each.key for each in everything] == sorted(keys)
    assert everything[0] == ObjectInfo("r/a-b", 5)
    assert [each.key for each in store.list("r/")] == sorted(keys)[:6]
    assert [each.key for each in store.list("r/a/")] == ["r/a/x", "r/a/y/z"]
    assert [each.key for each in store.list("r")] == sorted(keys)[:7]
    assert [each.key for each in store.list("r/a/x")] == ["r/a/x"]
    assert list(store.list("nothing/")) == []


@pytest.mark.parametrize("key", HOSTILE_KEYS, ids=repr)
def test_a_hostile_key_is_refused_by_every_verb(store: Store, key: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    verbs: list[Callable[[], object]] = [
        lambda: store.read(key),
        lambda: store.read_into(key, 0, memoryview(bytearray(1))),
        lambda: store.size(key),
        lambda: store.write_new(key, b"x"),
        lambda: store.write_new_file(key, source),
        lambda: store.write(key, b"x"),
        lambda: store.delete(key),
    ]
    for verb in verbs:
        with pytest.raises(StoreError, match=r"store key .* is not allowed"):
            verb()
    assert {path.name for path in tmp_path.rglob("*")} <= {"source", "store"}


@pytest.mark.parametrize("prefix", ["/", "..", "../", "a//", ".tmp/", "a/../b"])
def test_a_hostile_prefix_is_refused(store: Store, prefix: str) -> None:
    with pytest.raises(StoreError, match=r"store prefix .* is not allowed"):
        list(store.list(prefix))


def test_sixteen_threads_racing_have_one_winner(store: Store) -> None:
    for round_number in range(5):
        key = f"race/{round_number}"
        bodies = [f"{at}".encode() * 1000 for at in range(16)]
        with ThreadPoolExecutor(16) as pool:
            created = list(pool.map(lambda body, key=key: store.write_new(key, body), bodies))
        assert created.count(True) == 1
        assert store.read(key) == bodies[created.index(True)]


_RACER = """
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from kldcloud.store import open_store
store, me = open_store(sys.argv[1]), sys.argv[2]
store.size("warm")
print("ready", flush=True)
sys.stdin.readline()
names = [f"{me}-{at}" for at in range(4)]
with ThreadPoolExecutor(4) as pool:
    created = list(pool.map(lambda name: store.write_new("race", name.encode()), names))
print(*(name for name, won in zip(names, created) if won))
"""


def test_processes_racing_have_one_winner(store: Store) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, store.uri, str(at)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for at in range(4)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    winners = "".join(racer.communicate()[0] for racer in racers).split()
    assert [racer.returncode for racer in racers] == [0, 0, 0, 0]
    assert [store.read("race").decode()] == winners


def test_its_uri_opens_the_same_store_again(store: Store) -> None:
    store.write_new("x", b"1")
    again = open_store(store.uri)
    assert again.uri == store.uri
    assert again.read("x") == b"1"


def test_a_probe_finds_what_a_run_relies_on_and_leaves_nothing(store: Store) -> None:
    found = store.probe()
    assert found.ok, found.findings
    assert "of 8 writers at once exactly one creates the object" in found.findings
    assert list(store.list("")) == []


def test_a_missing_local_file_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot read .*absent: No such file"):
        store.write_new_file("x", tmp_path / "absent")
    with pytest.raises(StoreError, match="cannot read "):
        store.write_new_file("x", tmp_path)
    assert store.size("x") is None
