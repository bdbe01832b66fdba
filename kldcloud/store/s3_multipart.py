"""Creating a large object in parts: it appears at the end, once, or every part is removed."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from kldcloud.errors import KldcloudError, StoreError
from kldcloud.store.digest import md5_header
from kldcloud.store.s3_client import S3Bucket
from kldcloud.store.s3_errors import code_of, is_taken, stated, status_of
from kldcloud.store.s3_parallel import run_in_flight

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, MultipartUploadTypeDef

PART_BYTES = 16 << 20
PARTS_IN_FLIGHT = 4
_MAX_PARTS = 10_000  # S3's own limit
_STALE = dt.timedelta(days=1)


def upload_new(
    bucket: S3Bucket, name: str, size: int, read_part: Callable[[int, int], bytes]
) -> bool:
    """Create object `name` of `size` bytes (at least 1) from parts, unless it is there.

    Args:
        bucket: where to.
        name: the object's whole name in the bucket.
        size: in bytes.
        read_part: (offset, length) -> exactly those bytes; called from several threads.

    Returns:
        True if this call created it, False if the name was taken by the time of the last step.

    Raises:
        StoreError: it failed; no parts stay behind, unless the store cannot be reached to remove
            them: then the next call that creates this object does.
    """
    part_bytes = max(PART_BYTES, -(-size // _MAX_PARTS))
    upload = bucket.call(
        lambda client: stated(
            client.create_multipart_upload(Bucket=bucket.name, Key=name), "UploadId"
        ),
        key=name,
    )

    def send(offset: int, stop: threading.Event) -> CompletedPartTypeDef:
        number = offset // part_bytes + 1
        body = read_part(offset, min(part_bytes, size - offset))
        digest = md5_header(body)
        tag = bucket.call(
            lambda client: stated(
                client.upload_part(
                    Bucket=bucket.name,
                    Key=name,
                    UploadId=upload,
                    PartNumber=number,
                    Body=body,
                    ContentMD5=digest,
                ),
                "ETag",
            ),
            key=name,
            stop=stop,
            accept=_is_over,
        )
        return {"PartNumber": number, "ETag": tag}

    created = True
    try:
        parts = run_in_flight(send, range(0, size, part_bytes), width=PARTS_IN_FLIGHT)
        _complete(bucket, name, upload, parts)
    except ClientError as over:
        _abort(bucket, name, upload)
        # Someone else's object, or our own after a lost reply, or nothing: an upload taken away.
        if not is_taken(over) and not _is_there(bucket, name):
            raise StoreError(
                f"the upload of {name} was aborted by someone else",
                hint="run the same command again",
            ) from over
        created = False
    except BaseException:
        _abort(bucket, name, upload)
        raise
    _abort_all(bucket, name)
    return created


def abort_stale(bucket: S3Bucket, prefix: str) -> None:
    """Remove the parts that writers which died more than a day ago left under `prefix`."""
    oldest = dt.datetime.now(dt.UTC) - _STALE
    for each in _uploads(bucket, prefix):
        if each["Initiated"] < oldest:
            _abort(bucket, each["Key"], each["UploadId"])


def _complete(bucket: S3Bucket, name: str, upload: str, parts: list[CompletedPartTypeDef]) -> None:
    bucket.call(
        lambda client: stated(
            client.complete_multipart_upload(
                Bucket=bucket.name,
                Key=name,
                UploadId=upload,
                MultipartUpload={"Parts": parts},
                IfNoneMatch="*",
            ),
            "ETag",
        ),
        key=name,
        accept=_is_over,
    )


def _is_over(error: Exception) -> bool:
    """Say whether an upload has no future: its name is taken, or it is there no longer."""
    return is_taken(error) or code_of(error) == "NoSuchUpload"


def _is_there(bucket: S3Bucket, name: str) -> bool:
    try:
        bucket.call(
            lambda client: client.head_object(Bucket=bucket.name, Key=name),
            key=name,
            accept=lambda error: status_of(error) == HTTPStatus.NOT_FOUND,
        )
    except ClientError:
        return False
    return True


def _abort_all(bucket: S3Bucket, name: str) -> None:
    """Remove all parts for an object that is there: no upload of its name can succeed any more.

    Such are those of writers that died or came second, and those of an upload of which the first
    reply, with its id, was lost.
    """
    for each in _uploads(bucket, name):
        if each["Key"] == name:
            _abort(bucket, name, each["UploadId"])


def _uploads(bucket: S3Bucket, prefix: str) -> list[MultipartUploadTypeDef]:
    # Housekeeping, which the keys in use need not even be allowed to do.
    with contextlib.suppress(KldcloudError):
        return bucket.call(
            lambda client: client.list_multipart_uploads(Bucket=bucket.name, Prefix=prefix),
            key=prefix,
        ).get("Uploads", [])
    return []


def _abort(bucket: S3Bucket, name: str, upload: str) -> None:
    # The first failure is the one to report; NoSuchUpload means that there is nothing left.
    with contextlib.suppress(KldcloudError):
        bucket.call(
            lambda client: client.abort_multipart_upload(
                Bucket=bucket.name, Key=name, UploadId=upload
            ),
            key=name,
        )
