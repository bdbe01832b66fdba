"""Creating a large object in parts: it appears at the end, once, or every part is removed."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from kldcloud.errors import KldcloudError, StoreError
from kldcloud.store.s3_client import S3Bucket
from kldcloud.store.s3_errors import code_of, is_taken
from kldcloud.store.s3_parallel import run_in_flight

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

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
        StoreError: it failed; no parts stay behind.
    """
    part_bytes = max(PART_BYTES, -(-size // _MAX_PARTS))
    upload = bucket.call(
        lambda client: client.create_multipart_upload(Bucket=bucket.name, Key=name), key=name
    )["UploadId"]
    try:

        def send(offset: int, stop: threading.Event) -> CompletedPartTypeDef:
            number = offset // part_bytes + 1
            body = read_part(offset, min(part_bytes, size - offset))
            reply = bucket.call(
                lambda client: client.upload_part(
                    Bucket=bucket.name, Key=name, UploadId=upload, PartNumber=number, Body=body
                ),
                key=name,
                stop=stop,
            )
            return {"PartNumber": number, "ETag": reply["ETag"]}

        parts = run_in_flight(send, range(0, size, part_bytes), width=PARTS_IN_FLIGHT)
        created = _complete(bucket, name, upload, parts)
    except BaseException:
        _abort(bucket, name, upload)
        raise
    if not created:
        _abort(bucket, name, upload)
    return created


def abort_stale(bucket: S3Bucket, prefix: str) -> None:
    """Remove the parts that writers which died more than a day ago left under `prefix`."""
    oldest = dt.datetime.now(dt.UTC) - _STALE
    # Housekeeping, which the keys in use need not even be allowed to do.
    with contextlib.suppress(KldcloudError):
        reply = bucket.call(
            lambda client: client.list_multipart_uploads(Bucket=bucket.name, Prefix=prefix),
            key=prefix,
        )
        for each in reply.get("Uploads", []):
            if each["Initiated"] < oldest:
                _abort(bucket, each["Key"], each["UploadId"])


def _complete(bucket: S3Bucket, name: str, upload: str, parts: list[CompletedPartTypeDef]) -> bool:
    try:
        bucket.call(
            lambda client: client.complete_multipart_upload(
                Bucket=bucket.name,
                Key=name,
                UploadId=upload,
                MultipartUpload={"Parts": parts},
                IfNoneMatch="*",
            ),
            key=name,
            accept=lambda error: is_taken(error) or code_of(error) == "NoSuchUpload",
        )
    except Exception as error:
        if is_taken(error):
            return False
        if code_of(error) != "NoSuchUpload":
            raise
        # Either a lost reply hid our own success, or someone aborted the upload.
        try:
            bucket.call(lambda client: client.head_object(Bucket=bucket.name, Key=name), key=name)
        except StoreError as missing:
            raise StoreError(f"the upload of {name} was aborted by someone else") from missing
        return False
    return True


def _abort(bucket: S3Bucket, name: str, upload: str) -> None:
    # The first failure is the one to report; NoSuchUpload means that there is nothing left.
    with contextlib.suppress(KldcloudError):
        bucket.call(
            lambda client: client.abort_multipart_upload(
                Bucket=bucket.name, Key=name, UploadId=upload
            ),
            key=name,
        )
