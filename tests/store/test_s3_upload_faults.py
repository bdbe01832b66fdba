"""Uploads in parts over a network that fails: the object appears once, whole, and no parts stay."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from buckets import BIG, LOGIN_PAGE, ONCE, name_of, place, refusal, uploads
from fault_proxy import (
    ALWAYS,
    Answer,
    CutReply,
    CutRequest,
    Fault,
    FaultProxy,
    FlipRequest,
    Lost,
    Outage,
    Unsent,
    What,
)
from store_server import S3Server

from kldcloud.store import Store
from kldcloud.store.s3_client import S3Bucket
from kldcloud.store.s3_multipart import upload_new

FIRST, PART, LAST = ("POST", "*?uploads"), ("PUT", "*partNumber=2*"), ("POST", "*?uploadId=*")


@pytest.mark.parametrize(
    ("step", "what", "created"),
    [
        (FIRST, Answer(503, "SlowDown"), True),
        (FIRST, Lost(), True),
        (FIRST, CutReply(80), True),
        (FIRST, LOGIN_PAGE, True),
        (PART, Answer(500, "InternalError"), True),
        (PART, Unsent(), True),
        (PART, Lost(), True),
        (PART, CutRequest(), True),
        (PART, FlipRequest(), True),
        (PART, LOGIN_PAGE, True),
        (LAST, Answer(409, "ConditionalRequestConflict"), True),
        (LAST, Answer(200, "InternalError"), True),  # S3 may find out after it has said 200
        (LAST, Answer(200, body=b""), True),
        (LAST, Unsent(), True),
        (LAST, Lost(), False),
        (LAST, CutReply(60), False),
    ],
    ids=name_of,
)
def test_an_upload_outlives_a_failure_of_any_step_and_leaves_no_parts(
    s3_server: S3Server,
    proxy: FaultProxy,
    faulty: Store,
    direct: Store,
    step: tuple[str, str],
    what: What,
    created: bool,
) -> None:
    data = os.urandom(BIG)
    proxy.expect(Fault(what, *step, ONCE))
    assert faulty.write_new("x", data) is created
    assert len(proxy.hits) == 1
    out = bytearray(len(data))
    direct.read_into("x", 0, memoryview(out))
    assert out == data
    assert uploads(s3_server, direct.uri) == []


@pytest.mark.parametrize("what", [Answer(503, "SlowDown"), Answer(403, "AccessDenied"), Unsent()])
@pytest.mark.parametrize("step", [PART, LAST], ids=["part", "last"])
def test_an_upload_that_is_given_up_leaves_no_parts_and_no_object(
    s3_server: S3Server,
    proxy: FaultProxy,
    faulty: Store,
    direct: Store,
    step: tuple[str, str],
    what: What,
) -> None:
    proxy.expect(Fault(what, *step, ALWAYS))
    refusal(lambda: faulty.write_new("x", bytes(BIG)))
    assert uploads(s3_server, direct.uri) == []
    assert direct.size("x") is None


def test_parts_that_an_outage_left_go_when_the_object_is_made_after_all(
    s3_server: S3Server, proxy: FaultProxy, faulty: Store, direct: Store
) -> None:
    proxy.expect(Fault(Outage(), *PART))
    refusal(lambda: faulty.write_new("x", bytes(BIG)))
    assert proxy.is_down
    assert len(uploads(s3_server, direct.uri)) == 1, "nothing could be removed while it was down"
    assert direct.size("x") is None
    proxy.mend()
    assert faulty.write_new("x", bytes(BIG)) is True
    assert direct.size("x") == BIG
    assert uploads(s3_server, direct.uri) == []


def test_an_upload_that_is_gone_is_already_there_only_if_the_object_is(
    s3_server: S3Server, proxy: FaultProxy, faulty: Store, uri: str
) -> None:
    """AWS answers NoSuchUpload, where this server says 412, to a second completion."""
    bucket, prefix = place(uri)
    parts = S3Bucket(bucket, uri=uri)

    def upload() -> bool:
        return upload_new(parts, f"{prefix}/x", 3, lambda _at, _count: b"new")

    for step in (LAST, ("PUT", "*partNumber=1*")):
        proxy.expect(Fault(Answer(404, "NoSuchUpload"), *step))
        assert "was aborted by someone else" in refusal(upload)
        faulty.delete("x")
        proxy.expect()
        faulty.write("x", b"old")
        proxy.expect(Fault(Answer(404, "NoSuchUpload"), *step))
        assert upload() is False
        assert faulty.read("x") == b"old"
        proxy.expect()
        faulty.delete("x")
    assert uploads(s3_server, uri) == []


def test_keys_that_may_not_list_uploads_leave_no_parts_of_their_own(
    s3_server: S3Server, proxy: FaultProxy, faulty: Store, direct: Store, uri: str
) -> None:
    bucket, prefix = place(uri)
    proxy.expect(Fault(Answer(403, "AccessDenied"), "GET", "*uploads*"))
    parts = S3Bucket(bucket, uri=uri)
    assert upload_new(parts, f"{prefix}/x", 3, lambda _at, _count: b"new") is True
    assert upload_new(parts, f"{prefix}/x", 3, lambda _at, _count: b"two") is False
    assert len(proxy.hits) == 2
    assert faulty.read("x") == direct.read("x") == b"new"
    assert uploads(s3_server, uri) == []


def test_of_large_uploads_at_once_one_creates_the_object_and_none_leaves_parts(
    s3_server: S3Server, direct: Store
) -> None:
    for key in ("a", "b"):
        bodies = [bytes([at]) * BIG for at in range(3)]
        with ThreadPoolExecutor(3) as pool:
            created = list(pool.map(lambda body, key=key: direct.write_new(key, body), bodies))
        assert created.count(True) == 1
        assert direct.read(key) == bodies[created.index(True)]
    assert uploads(s3_server, direct.uri) == []
