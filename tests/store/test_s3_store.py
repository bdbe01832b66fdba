"""The S3 store where buckets differ from folders: credentials, endpoints, parts left behind."""

from __future__ import annotations

import datetime as dt
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from buckets import MIB, place, refusal, uploads
from store_server import S3Server, isolate_aws

from kldcloud.errors import StoreError
from kldcloud.store import Store, open_store
from kldcloud.store.s3_client import S3Bucket
from kldcloud.store.s3_multipart import abort_stale, upload_new


@pytest.fixture
def uri(s3_store_uri: Callable[[str], str]) -> str:
    return s3_store_uri("s3")


@pytest.fixture
def store(uri: str) -> Store:
    return open_store(uri)


def verbs(store: Store, path: Path) -> list[Callable[[], object]]:
    """Every verb once; the file is large enough to go in parts."""
    with path.open("wb") as file:
        file.truncate(40 * MIB)
    return [
        lambda: store.read("x"),
        lambda: store.read_into("x", 0, memoryview(bytearray(1))),
        lambda: store.size("x"),
        lambda: store.write_new("x", b"1"),
        lambda: store.write_new_file("x", path),
        lambda: store.write("x", b"1"),
        lambda: list(store.list("")),
        lambda: store.delete("x"),
    ]


@pytest.mark.usefixtures("uri")
def test_a_missing_bucket_is_named_by_every_verb(tmp_path: Path) -> None:
    store = open_store("s3://no-such-bucket/prefix")
    for verb in verbs(store, tmp_path / "file"):
        assert "no bucket no-such-bucket at http://127.0.0.1:" in refusal(verb)
    probe = store.probe()
    assert not probe.ok
    assert "create it, or correct the store's URI" in probe.findings[0]


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_bad_credentials_are_refused_and_never_printed(
    uri: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(name, "wrongwrongwrong")
    store = open_store(uri)
    for verb in verbs(store, tmp_path / "file"):
        text = refusal(verb)
        assert "refused the AWS credentials" in text
        assert "AWS_PROFILE" in text
        assert "wrongwrongwrong" not in text
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in text
    assert not store.probe().ok


def test_missing_credentials_are_named(
    uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = open_store(uri)
    for verb in verbs(store, tmp_path / "file"):
        assert "no usable AWS credentials for s3://" in refusal(verb)


def test_a_profile_that_does_not_exist_is_named(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "absent")
    assert "no usable AWS credentials" in refusal(lambda: open_store(uri))


def test_a_profile_in_the_configuration_files_is_enough(
    s3_server: S3Server, uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    isolate_aws(monkeypatch)
    config = tmp_path / "config"
    config.write_text(
        f"[profile lab]\nendpoint_url = {s3_server.endpoint}\nregion = eu-west-1\n"
        f"aws_access_key_id = {s3_server.access_key}\n"
        f"aws_secret_access_key = {s3_server.secret_key}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    store = open_store(uri)
    assert store.write_new("x", b"1")
    assert store.read("x") == b"1"


@pytest.mark.timeout(60)
def test_an_endpoint_that_nobody_serves_is_named_in_bounded_time(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:hunter2@127.0.0.1:{port}")
        text = refusal(lambda: open_store(uri).read("x"))
    assert f"cannot reach http://127.0.0.1:{port}; check AWS_ENDPOINT_URL" in text


@pytest.mark.parametrize("endpoint", ["127.0.0.1:1", "http://bad host", "nonsense"])
def test_an_endpoint_that_is_no_url_is_named(
    uri: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert refusal(lambda: open_store(uri).read("x"))


def test_an_endpoint_with_a_name_needs_no_name_for_each_bucket(
    s3_server: S3Server, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint.replace("127.0.0.1", "localhost"))
    assert open_store(uri).write_new("x", b"1")


def test_an_endpoint_that_speaks_no_tls_is_named(
    s3_server: S3Server, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint.replace("http:", "https:"))
    assert "check that the endpoint speaks https" in refusal(lambda: open_store(uri).read("x"))


@pytest.mark.parametrize("failure", [StoreError("the disk went away"), KeyboardInterrupt()])
def test_an_upload_that_fails_midway_leaves_no_parts(
    s3_server: S3Server, uri: str, store: Store, failure: BaseException
) -> None:
    bucket, prefix = place(uri)
    seen: list[str] = []

    def read_part(offset: int, count: int) -> bytes:
        if offset:
            while not uploads(s3_server, uri):
                time.sleep(0.01)
            seen.extend(uploads(s3_server, uri))
            raise failure
        return bytes(count)

    with pytest.raises(type(failure)):
        upload_new(S3Bucket(bucket, uri=uri), f"{prefix}/x", 40 * MIB, read_part)
    assert f"{prefix}/x" in seen
    assert uploads(s3_server, uri) == []
    assert store.size("x") is None


_INTERRUPTED = """
import sys, time
from pathlib import Path
from kldcloud.store.s3_client import S3Bucket
from kldcloud.store.s3_multipart import upload_new
bucket, name, go = sys.argv[1:]
def read_part(offset, count):
    while offset and not Path(go).exists():
        time.sleep(0.01)
    return bytes(count)
try:
    upload_new(S3Bucket(bucket, uri="s3://" + bucket), name, 200 << 20, read_part)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_during_an_upload_leaves_no_parts(
    s3_server: S3Server, uri: str, store: Store, tmp_path: Path
) -> None:
    bucket, prefix = place(uri)
    go = tmp_path / "go"
    command = [sys.executable, "-c", _INTERRUPTED, bucket, f"{prefix}/x", str(go)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not uploads(s3_server, uri):
        assert writer.poll() is None
        time.sleep(0.05)
    writer.send_signal(signal.SIGINT)
    time.sleep(0.2)
    go.touch()
    said, _ = writer.communicate()
    assert said == "interrupted\n"
    assert uploads(s3_server, uri) == []
    assert store.size("x") is None


def test_parts_of_dead_writers_are_removed_only_once_they_are_old(
    s3_server: S3Server, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, prefix = place(uri)
    client = s3_server.client()
    for name in (f"{prefix}/x", f"{prefix}-other/x"):
        client.create_multipart_upload(Bucket=bucket, Key=name)
    opened = S3Bucket(bucket, uri=uri)
    abort_stale(opened, f"{prefix}/")
    assert uploads(s3_server, uri) == [f"{prefix}-other/x", f"{prefix}/x"]
    # The server dates uploads itself, so a day cannot be faked: the limit is moved instead.
    monkeypatch.setattr("kldcloud.store.s3_multipart._STALE", dt.timedelta(minutes=-1))
    abort_stale(opened, f"{prefix}/")
    assert uploads(s3_server, uri) == [f"{prefix}-other/x"]


def test_listing_goes_past_the_first_thousand(store: Store) -> None:
    keys = [f"many/{at:04}" for at in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.write(key, b"1"), keys))
    assert [each.key for each in store.list("many/")] == keys


def test_foreign_objects_are_not_listed(s3_server: S3Server, uri: str, store: Store) -> None:
    bucket, prefix = place(uri)
    for name in ("x", "odd name", ".hidden", "folder/"):
        s3_server.client().put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=b"1")
    s3_server.client().put_object(Bucket=bucket, Key=f"{prefix}x/y", Body=b"1")
    assert [each.key for each in store.list("")] == ["x"]


@pytest.mark.usefixtures("uri")
def test_a_bucket_without_a_prefix_is_a_store(s3_server: S3Server) -> None:
    s3_server.make_bucket("whole-bucket")
    store = open_store("s3://whole-bucket")
    store.write("a/x", b"1")
    assert [each.key for each in store.list("")] == ["a/x"]
    assert store.size("a/x") == 1
