"""What S3 and botocore can say, as: try again, or one sentence and the next step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ProxyConnectionError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
    SSOError,
    TokenRetrievalError,
)
from urllib3.exceptions import HTTPError

from kldcloud.errors import FormatError, StoreError


class StrangeReplyError(Exception):
    """A reply that reports success and lacks what S3 always says then: believe nothing of it."""


# Whatever a request can raise; urllib3's own come through while a body is being read.
S3_FAILURES = (ClientError, BotoCoreError, HTTPError, OSError, StrangeReplyError)

UNREACHABLE = (EndpointConnectionError, ConnectTimeoutError, ProxyConnectionError)
_TRANSIENT = (
    *UNREACHABLE,
    ConnectionClosedError,
    ReadTimeoutError,
    IncompleteReadError,
    ResponseStreamingError,
    HTTPError,
    ConnectionError,
    TimeoutError,
    StrangeReplyError,
)
# The body was cut or changed on its way, which the server found out by its digest.
_DAMAGED_CODES = frozenset({"BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"})
_TRANSIENT_CODES = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "RequestThrottledException",
    "RequestLimitExceeded",
    "TooManyRequests",
    "TooManyRequestsException",
    "BandwidthLimitExceeded",
    "RequestTimeout",
    "RequestTimeoutException",
    "InternalError",
    "ServiceUnavailable",
    # Another writer of the same key is in flight: the next try learns who won.
    "ConditionalRequestConflict",
    "OperationAborted",
    *_DAMAGED_CODES,
}
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}

_SET_KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_HONOURS = "use a store that honours If-None-Match (AWS S3, SeaweedFS, recent MinIO)"


@dataclass(frozen=True, slots=True)
class _Reason:
    """A family of failures, by service code or exception, and what to say about it."""

    message: str
    hint: str | None
    codes: frozenset[str] = frozenset()
    kinds: tuple[type[Exception], ...] = ()
    error: type[StoreError | FormatError] = StoreError


# The first that fits is used: narrower kinds stand before wider ones.
_REASONS = (
    _Reason(
        "no bucket {bucket} at {endpoint}",
        "create it, or correct the store's URI",
        codes=frozenset({"NoSuchBucket"}),
    ),
    _Reason("no object {key} in {uri}", None, codes=frozenset({"NoSuchKey", "404"})),
    _Reason(
        "{key} in {uri} ends before the range that was asked for",
        None,
        codes=frozenset({"InvalidRange", "416"}),
        error=FormatError,
    ),
    _Reason(
        "no usable AWS credentials for {uri}",
        _SET_KEYS,
        kinds=(
            NoCredentialsError,
            PartialCredentialsError,
            ProfileNotFound,
            CredentialRetrievalError,
            TokenRetrievalError,
            SSOError,
        ),
    ),
    _Reason(
        "{endpoint} refused the AWS credentials ({code})",
        _SET_KEYS,
        codes=frozenset(
            {
                "InvalidAccessKeyId",
                "SignatureDoesNotMatch",
                "InvalidToken",
                "ExpiredToken",
                "TokenRefreshRequired",
                "InvalidSecurity",
                "Unauthorized",
                "401",
            }
        ),
    ),
    _Reason(
        "{endpoint} denied access to {key} in {uri} ({code})",
        "the keys need s3:GetObject, PutObject, DeleteObject and ListBucket there",
        codes=frozenset({"AccessDenied", "AllAccessDisabled", "Forbidden", "403"}),
    ),
    _Reason(
        "no secure connection to {endpoint}",
        "check that the endpoint speaks https, or set AWS_CA_BUNDLE to its authority",
        kinds=(SSLError,),
    ),
    _Reason(
        "cannot reach {endpoint}",
        "check AWS_ENDPOINT_URL, the proxy and the network",
        kinds=UNREACHABLE,
    ),
    _Reason(
        "{endpoint} finds this machine's clock wrong",
        "set the clock",
        codes=frozenset({"RequestTimeTooSkewed"}),
    ),
    _Reason(
        "{endpoint} does not serve {uri} ({code})",
        "set AWS_REGION to the bucket's region",
        codes=frozenset(
            {
                "AuthorizationHeaderMalformed",
                "PermanentRedirect",
                "TemporaryRedirect",
                "IllegalLocationConstraintException",
                "301",
                "307",
            }
        ),
    ),
    _Reason(
        "{endpoint} has no space left for {key}",
        "free some space, then run the same command again",
        codes=frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"}),
    ),
    _Reason(
        "{endpoint} does not support a request that {uri} needs ({key})",
        _HONOURS,
        codes=frozenset({"NotImplemented", "501"}),
    ),
    _Reason(
        "{endpoint} did not get {key} as it was sent ({code})",
        "look for what changes requests on their way, such as a proxy",
        codes=_DAMAGED_CODES,
    ),
    _Reason(
        "{endpoint} does not answer as S3 does ({key})",
        "check AWS_ENDPOINT_URL and what stands before the store, such as a proxy",
        kinds=(StrangeReplyError,),
    ),
    _Reason(
        "{endpoint} stopped answering ({key})",
        "run the same command again once it is back",
        kinds=_TRANSIENT,
    ),
)


def code_of(error: BaseException) -> str:
    """Return the service's error code: a word, or the HTTP status of a reply without a body."""
    if not isinstance(error, ClientError):
        return ""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: BaseException) -> int:
    """Return the HTTP status of the reply, or 0 if there was none."""
    if not isinstance(error, ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_transient(error: BaseException) -> bool:
    """Say whether the same request may succeed a little later."""
    if isinstance(error, SSLError):
        return False
    if isinstance(error, ClientError):
        return code_of(error) in _TRANSIENT_CODES or status_of(error) in _TRANSIENT_STATUS
    return isinstance(error, _TRANSIENT)


def is_taken(error: BaseException) -> bool:
    """Say whether a create-only write was refused because the key exists.

    Older MinIO answers 304 where S3 answers 412.
    """
    return code_of(error) == "PreconditionFailed" or status_of(error) in (304, 412)


def stated(reply: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 - as botocore has it
    """Return a field that the reply to a request which succeeded must have.

    A proxy or a login page can answer 200 as well, and AWS documents an empty 200 where the last
    step of an upload failed after all.

    Raises:
        StrangeReplyError: it is not there.
    """
    if name not in reply:
        raise StrangeReplyError(f"a reply without {name}")
    return reply[name]


def without_password(url: str) -> str:
    """Return the scheme, host and port of a URL, and nothing else of it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def explain(error: Exception, *, uri: str, endpoint: str, key: str) -> StoreError | FormatError:
    """Return one sentence for what went wrong, without the keys or the request.

    Args:
        error: one of S3_FAILURES, after any retries.
        uri: the store.
        endpoint: where requests go, without a password.
        key: the object or prefix that was asked for.
    """
    code = code_of(error)
    # The service's own words may be long or quote the request: its code is enough.
    named = (code or type(error).__name__)[:60]
    facts = {
        "bucket": uri.removeprefix("s3://").partition("/")[0],
        "endpoint": endpoint,
        "uri": uri,
        "key": key or "the bucket",
        "code": named,
    }
    for reason in _REASONS:
        if code in reason.codes or isinstance(error, reason.kinds):
            return reason.error(reason.message.format(**facts), hint=reason.hint)
    return StoreError(
        "{endpoint} failed on {key} in {uri} ({code})".format(**facts),
        hint="run the same command again; if it persists, look that code up",
    )
