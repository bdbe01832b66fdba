"""What tests of the S3 store ask beside it: of the server itself, and of an error's words."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fault_proxy import Answer
from store_server import S3Server

from kldcloud.errors import FormatError, StoreError

MIB = 1 << 20
BIG = 12 * MIB  # three parts of the least size that S3 allows
ONCE, TWICE = range(1), range(2)
LOGIN_PAGE = Answer(200, body=b"<html><body>Please log in</body></html>")


def place(uri: str) -> tuple[str, str]:
    """Split a URI into bucket and prefix."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return bucket, prefix


def uploads(server: S3Server, uri: str) -> list[str]:
    """The names under the URI that have parts but no object yet."""
    bucket, prefix = place(uri)
    reply = server.client().list_multipart_uploads(Bucket=bucket, Prefix=prefix)
    return sorted(each["Key"] for each in reply.get("Uploads", []))


def refusal(verb: Callable[[], object], kind: type[StoreError | FormatError] = StoreError) -> str:
    """The one line that an error of a store says."""
    with pytest.raises(kind) as caught:
        verb()
    text = str(caught.value)
    assert "\n" not in text
    return text


def name_of(value: object) -> str | None:
    """A short name for a case; None leaves it to pytest."""
    if isinstance(value, Answer):
        return f"{value.status}-{value.code or 'page'}"
    return None if isinstance(value, str) else repr(value).partition("(")[0]
