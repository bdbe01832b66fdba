"""A network that fails the S3 store: what was asked for happens once and whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from buckets import BIG, LOGIN_PAGE, MIB, ONCE, TWICE, name_of, place, refusal
from fault_proxy import (
    Answer,
    CutReply,
    CutRequest,
    Delay,
    Fault,
    FaultProxy,
    FlipReply,
    FlipRequest,
    Lost,
    Unsent,
    What,
)
from store_server import S3Server

from kldcloud.errors import FormatError
from kldcloud.store import Store, open_store, s3_client, sha256_bytes
from kldcloud.store.s3_client import ATTEMPTS

PASSING = [
    Answer(503, "SlowDown"),
    Answer(500, "InternalError"),
    Answer(429, "TooManyRequests"),
    Answer(400, "RequestTimeout"),
    Answer(502, body=b"<html><h1>Bad Gateway</h1>"),
    Answer(503, body=b""),
    Unsent(),
    Lost(),
]


@pytest.mark.parametrize("what", PASSING, ids=name_of)
def test_every_verb_outlives_a_passing_failure(
    proxy: FaultProxy, faulty: Store, what: What, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"from a file")
    faults = [Fault(what, method, when=TWICE) for method in ("GET", "PUT", "HEAD", "DELETE")]
    created = not isinstance(what, Lost)  # then the next try meets what the first one made

    proxy.expect(*faults)
    assert faulty.write_new("new", b"once") is created
    proxy.expect(*faults)
    assert faulty.write_new_file("file", path) is created
    proxy.expect(*faults)
    faulty.write("plain", b"replaced at will")
    proxy.expect(*faults)
    assert faulty.read("new") == b"once"
    proxy.expect(*faults)
    out = bytearray(4)
    faulty.read_into("plain", 3, memoryview(out))
    assert out == b"lace"
    proxy.expect(*faults)
    assert [info.key for info in faulty.list("")] == ["file", "new", "plain"]
    proxy.expect(*faults)
    assert faulty.size("file") == 11
    proxy.expect(*faults)
    faulty.delete("file")
    assert len(proxy.hits) == 2
    proxy.expect()
    assert faulty.size("file") is None


@pytest.mark.parametrize("what", [Lost(), CutReply(), Delay(6)], ids=name_of)
def test_a_commit_whose_reply_did_not_arrive_ends_as_already_there(
    proxy: FaultProxy, uri: str, what: What, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "_READ_SECONDS", 1)
    faulty = open_store(uri)
    if isinstance(what, CutReply):
        # The reply to a PUT has no body: a late step's has.
        proxy.expect(Fault(what, "POST", "*uploadId=*", ONCE))
        data = bytes(BIG)
    else:
        proxy.expect(Fault(what, "PUT", when=ONCE))
        data = b"mine"
    assert faulty.write_new("x", data) is False
    assert len(proxy.hits) == 1
    assert faulty.read("x") == data


def test_a_slow_store_is_waited_for(
    proxy: FaultProxy, direct: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "_READ_SECONDS", 2)
    direct.write("x", bytes(1000))
    proxy.expect(Fault(Delay(1.2)))
    assert open_store(uri).read("x") == bytes(1000)
    assert len(proxy.asked) == 1


def test_a_conflict_of_writers_is_tried_again(proxy: FaultProxy, faulty: Store) -> None:
    proxy.expect(Fault(Answer(409, "ConditionalRequestConflict"), "PUT", when=TWICE))
    assert faulty.write_new("x", b"mine") is True
    assert faulty.read("x") == b"mine"


def test_after_a_conflict_that_another_writer_won_its_object_stands(
    proxy: FaultProxy, faulty: Store, direct: Store
) -> None:
    proxy.expect(Fault(Answer(409, "ConditionalRequestConflict"), "PUT", when=ONCE))
    direct.write("x", b"theirs")
    assert faulty.write_new("x", b"mine") is False
    assert faulty.read("x") == b"theirs"


def test_an_old_server_that_answers_304_means_already_there(
    proxy: FaultProxy, faulty: Store
) -> None:
    proxy.expect(Fault(Answer(304), "PUT"))
    assert faulty.write_new("x", b"1") is False


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (Answer(503, "SlowDown"), "failed on x in s3://"),
        (Answer(409, "ConditionalRequestConflict"), "(ConditionalRequestConflict)"),
        (Unsent(), "stopped answering (x); run the same command again once it is back"),
        (CutRequest(), "stopped answering (x)"),
        (FlipRequest(), "did not get x as it was sent (BadDigest)"),
        (LOGIN_PAGE, "does not answer as S3 does (x); check AWS_ENDPOINT_URL"),
    ],
    ids=name_of,
)
def test_a_write_that_never_gets_through_says_why_and_leaves_nothing(
    proxy: FaultProxy, faulty: Store, direct: Store, what: What, said: str
) -> None:
    proxy.expect(Fault(what, "PUT"))
    assert said in refusal(lambda: faulty.write_new("x", bytes(1000)))
    assert len(proxy.hits) == ATTEMPTS
    assert direct.size("x") is None
    assert said in refusal(lambda: faulty.write("x", bytes(1000)))
    assert list(direct.list("")) == []


@pytest.mark.parametrize("what", [CutRequest(), FlipRequest(), LOGIN_PAGE], ids=name_of)
def test_a_write_that_arrives_damaged_is_sent_again(
    proxy: FaultProxy, faulty: Store, direct: Store, what: What
) -> None:
    data = os.urandom(100_000)
    proxy.expect(Fault(what, "PUT", when=TWICE))
    assert faulty.write_new("x", data) is True
    assert direct.read("x", sha256=sha256_bytes(data)) == data


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (Answer(403, "AccessDenied"), "denied access to x"),
        (Answer(403, "RequestTimeTooSkewed"), "clock wrong; set the clock"),
        (Answer(301, "PermanentRedirect"), "set AWS_REGION"),
        (Answer(501, "NotImplemented"), "If-None-Match"),
        (Answer(507, "XMinioStorageFull"), "no space left for x"),
        (Answer(418, "Teapot"), "failed on x in s3://"),
    ],
    ids=name_of,
)
def test_a_lasting_failure_is_explained_at_once(
    proxy: FaultProxy, faulty: Store, what: What, said: str
) -> None:
    proxy.expect(Fault(what, "PUT"))
    assert said in refusal(lambda: faulty.write_new("x", b"1"))
    assert len(proxy.hits) == 1


@pytest.mark.parametrize("what", [CutReply(), CutReply(1234), FlipReply(), LOGIN_PAGE], ids=name_of)
def test_bytes_that_arrive_damaged_are_fetched_again(
    proxy: FaultProxy, faulty: Store, direct: Store, what: What
) -> None:
    data = os.urandom(5000)
    direct.write_new("x", data)
    proxy.expect(Fault(what, "GET", when=TWICE))
    # Nobody says here what the digest must be: the store keeps one of what it wrote.
    assert faulty.read("x") == data
    assert len(proxy.hits) == 2


@pytest.mark.parametrize("what", [CutReply(), CutReply(1234), FlipReply(), LOGIN_PAGE], ids=name_of)
@pytest.mark.parametrize("size", [5000, 24 * MIB])  # of the larger, three ranges come at once
def test_a_range_that_arrives_damaged_is_fetched_again(
    proxy: FaultProxy, faulty: Store, direct: Store, size: int, what: What
) -> None:
    data = os.urandom(size)
    direct.write_new("x", data)
    proxy.expect(Fault(what, "GET", when=TWICE))
    out = bytearray(size)
    faulty.read_into("x", 0, memoryview(out), sha256=sha256_bytes(data))
    assert out == data
    assert len(proxy.hits) == 2


def test_bytes_that_are_wrong_each_time_are_refused_by_name(
    proxy: FaultProxy, faulty: Store, direct: Store
) -> None:
    data = os.urandom(5000)
    direct.write_new("runs/r/x", data)
    proxy.expect(Fault(FlipReply(), "GET"))
    out = memoryview(bytearray(100))
    promised = sha256_bytes(data[50:150])
    for said in (
        refusal(lambda: faulty.read("runs/r/x"), FormatError),
        refusal(lambda: faulty.read("runs/r/x", sha256=sha256_bytes(data)), FormatError),
        refusal(lambda: faulty.read_into("runs/r/x", 50, out, sha256=promised), FormatError),
    ):
        assert "runs/r/x in s3://" in said
        assert "has SHA-256" in said
        assert "delete it and run the same command again" in said


def test_an_object_that_changed_where_it_lies_is_refused_by_name(
    s3_server: S3Server, uri: str, direct: Store
) -> None:
    bucket, prefix = place(uri)
    client = s3_server.client()
    for key, metadata in (("kept", {"sha256": sha256_bytes(b"old")}), ("foreign", {})):
        client.put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=b"new", Metadata=metadata)
    assert "kept in s3://" in refusal(lambda: direct.read("kept"), FormatError)
    assert direct.read("foreign") == b"new", "what others wrote has no digest to be held to"


@pytest.mark.parametrize("what", [Unsent(), CutReply(100)], ids=name_of)
def test_a_read_that_never_ends_whole_is_given_up(
    proxy: FaultProxy, faulty: Store, direct: Store, what: What
) -> None:
    direct.write("x", bytes(5000))
    proxy.expect(Fault(what, "GET"))
    assert "stopped answering (x)" in refusal(lambda: faulty.read("x"))
    assert len(proxy.hits) == ATTEMPTS
    out = memoryview(bytearray(5000))
    assert "stopped answering (x)" in refusal(lambda: faulty.read_into("x", 0, out))


@pytest.mark.parametrize("what", [LOGIN_PAGE, Answer(200, body=b""), CutReply(99)], ids=name_of)
def test_a_page_that_is_no_listing_is_never_taken_for_an_empty_one(
    proxy: FaultProxy, faulty: Store, direct: Store, what: What
) -> None:
    direct.write("x", b"1")
    proxy.expect(Fault(what, "GET", when=TWICE))
    assert [info.key for info in faulty.list("")] == ["x"]
    proxy.expect(Fault(what, "GET"))
    refusal(lambda: list(faulty.list("")))


def test_a_server_that_replaces_what_it_should_not_fails_the_probe(
    proxy: FaultProxy, faulty: Store
) -> None:
    """Servers that ignore If-None-Match answer 200 to the second write as well."""
    proxy.expect(Fault(Answer(200, body=b"", headers=(("ETag", "x"),)), "PUT"))
    probe = faulty.probe()
    assert not probe.ok
    assert "two workers could commit one shard" in probe.findings[0]


def test_a_reason_that_is_cut_off_is_asked_for_again(proxy: FaultProxy, uri: str) -> None:
    # The first look at a place asks why there is nothing: is it the object or the bucket?
    proxy.expect(Fault(CutReply(10), "GET", when=ONCE))
    assert open_store(uri).size("absent") is None
    assert proxy.hits
