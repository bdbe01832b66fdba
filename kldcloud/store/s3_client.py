"""One bucket at one endpoint: a boto3 client, our retries around it, errors in one sentence."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    wait_exponential,
    wait_random,
)
from tenacity.nap import sleep_using_event

from kldcloud.store.s3_errors import S3_FAILURES, explain, is_transient
from kldcloud.store.s3_errors import without_password as shown

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

ATTEMPTS = 8  # with the waits below, about half a minute of patience
# A server that never answered is more likely mistyped than restarting.
FIRST_CONTACT_ATTEMPTS = 3
_WAIT = wait_exponential(multiplier=0.2, max=8.0) + wait_random(0.0, 0.5)
_CONNECT_SECONDS = 5
_READ_SECONDS = 30
_CONNECTIONS = 16


class S3Bucket:
    """Requests to one bucket, from any number of threads.

    Attributes:
        name: the bucket.
        endpoint: where requests go, without a password.
    """

    def __init__(self, name: str, *, uri: str) -> None:
        """Make a client; nothing is sent yet.

        Raises:
            StoreError: the AWS environment or configuration files are unusable.
        """
        self.name = name
        self._uri = uri
        self._answered = False
        try:
            self._client = _make_client()
        except (BotoCoreError, ValueError) as error:
            raise explain(error, uri=uri, endpoint=_asked_endpoint(), key="") from error
        self.endpoint = shown(self._client.meta.endpoint_url)

    def call(
        self,
        request: Callable[[S3Client], T],
        *,
        key: str,
        stop: threading.Event | None = None,
        accept: Callable[[Exception], bool] | None = None,
    ) -> T:
        """Run `request`, again with growing pauses while its failure is transient.

        Args:
            request: makes one request and reads all of its reply; it must bear repetition.
            key: for messages.
            stop: once set, nothing is tried again.
            accept: failures that are an answer to the caller; they pass through unexplained.

        Raises:
            StoreError: it failed for good.
            FormatError: the range asked for is not there.
        """
        halt = stop or threading.Event()

        def exhausted(state: RetryCallState) -> bool:
            outcome = state.outcome
            error = outcome.exception() if outcome is not None else None
            stranger = not isinstance(error, ClientError) and not self._answered
            allowed = FIRST_CONTACT_ATTEMPTS if stranger else ATTEMPTS
            return halt.is_set() or state.attempt_number >= allowed

        retrying = Retrying(
            stop=exhausted,
            wait=_WAIT,
            retry=retry_if_exception(is_transient),
            sleep=sleep_using_event(halt),
            reraise=True,
        )
        try:
            result = retrying(request, self._client)
        except S3_FAILURES as error:
            self._answered |= isinstance(error, ClientError)
            if accept is not None and accept(error):
                raise
            raise explain(error, uri=self._uri, endpoint=self.endpoint, key=key) from error
        self._answered = True
        return result


def _make_client() -> S3Client:
    session = boto3.session.Session()
    # botocore itself reads AWS_DEFAULT_REGION only; every other AWS SDK reads AWS_REGION.
    region = os.environ.get("AWS_REGION") or session.region_name
    options = Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        max_pool_connections=_CONNECTIONS,
        tcp_keepalive=True,
        # Ours are the only retries: two layers would multiply.
        retries={"total_max_attempts": 1, "mode": "standard"},
        # Older servers reject the trailing checksums of newer SDKs, and not every server verifies
        # the SHA-256 that signatures carry. All verify Content-MD5, which our writes send.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    # With an endpoint of one's own botocore puts the bucket in the path, unless told otherwise.
    return session.client("s3", region_name=region, config=options)


def _asked_endpoint() -> str:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    asked = next((os.environ[name] for name in names if os.environ.get(name)), None)
    return shown(asked) if asked else "AWS S3"
