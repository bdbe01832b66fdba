"""The stores that one suite of promises runs against, and one behind a network that fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tenacity
from buckets import BIG
from fault_proxy import FaultProxy, fault_proxy
from store_server import S3Server

from kldcloud.store import Store, open_store, s3, s3_client, s3_multipart

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A fresh, empty store of each kind."""
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    fresh: Callable[[str], str] = request.getfixturevalue("s3_store_uri")
    return open_store(fresh("contract"))


_clients: dict[tuple[str, int], S3Client] = {}


def _shared(make: Callable[[], S3Client]) -> S3Client:
    """One client for each server and each patience with it."""
    kind = (os.environ["AWS_ENDPOINT_URL"], s3_client._READ_SECONDS)
    if kind not in _clients:
        _clients[kind] = make()
    return _clients[kind]


@pytest.fixture(scope="module")
def network(s3_server: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(s3_server.endpoint) as between:
        yield between


@pytest.fixture
def uri(s3_store_uri: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> str:
    # It takes boto3 most of a second to make a client, and some tests ten milliseconds to run.
    make = s3_client._make_client
    monkeypatch.setattr(s3_client, "_make_client", lambda: _shared(make))
    return s3_store_uri("faults")


@pytest.fixture
def direct(uri: str) -> Store:
    """The same place without faults: its client keeps the server's own address."""
    return open_store(uri)


@pytest.fixture
def proxy(network: FaultProxy, direct: Store, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    del direct  # opened before the environment names the proxy
    network.expect()
    monkeypatch.setenv("AWS_ENDPOINT_URL", network.endpoint)
    # How long the store waits, and what it calls large, is not what is tried here.
    monkeypatch.setattr(s3_client, "_WAIT", tenacity.wait_none())
    monkeypatch.setattr(s3, "MULTIPART_FROM_BYTES", BIG)
    monkeypatch.setattr(s3_multipart, "PART_BYTES", 5 << 20)
    return network


@pytest.fixture
def faulty(proxy: FaultProxy, uri: str) -> Store:
    """The place behind the proxy; it has answered once, so that patience is not for strangers."""
    opened = open_store(uri)
    assert opened.size("x") is None
    proxy.expect()
    return opened
