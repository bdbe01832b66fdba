"""One object of a bucket -> a file in the cache, under a name made of bucket, key and version."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from kldcloud.errors import StoreError
from kldcloud.models.part_file import ProgressCallback, complete_part
from kldcloud.store.s3_client import S3Bucket
from kldcloud.store.s3_parallel import run_in_flight

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_RANGE_BYTES = 8 << 20
_RANGES_IN_FLIGHT = 8
_LONGEST_NAME = 120


def download_object(
    bucket: str, key: str, *, cache: Path, progress: ProgressCallback | None = None
) -> Path:
    """Return the object as a file; it is fetched once for each version (ETag) of it.

    `kldcloud.store` opens only keys that it would write itself, so people's own keys, with spaces
    and all, are read from its client below that rule.

    Raises:
        StoreError: no such object, no access, no room, or the object changed meanwhile.
    """
    source = S3Bucket(bucket, uri=f"s3://{bucket}")
    head = source.call(lambda client: client.head_object(Bucket=bucket, Key=key), key=key)
    version, size = head["ETag"], head["ContentLength"]
    identity = hashlib.sha256("\0".join((bucket, key, version, str(size))).encode())
    name = key.rpartition("/")[2][-_LONGEST_NAME:]
    target = cache / "s3" / identity.hexdigest()[:32] / name

    def fetch_range(client: S3Client, start: int, out: memoryview) -> None:
        span = f"bytes={start}-{start + len(out) - 1}"
        reply = client.get_object(Bucket=bucket, Key=key, Range=span)
        with contextlib.closing(reply["Body"]) as body:
            # Bytes of two versions must never meet in one file.
            if reply["ETag"] != version or reply["ContentLength"] != len(out):
                raise StoreError(
                    f"s3://{bucket}/{key} changed while it was downloaded",
                    hint="run the same command again",
                )
            out[:] = body.read()

    def read(start: int, count: int) -> bytearray:
        window = bytearray(count)

        def fetch(offset: int, stop: threading.Event) -> None:
            out = memoryview(window)[offset : offset + _RANGE_BYTES]
            source.call(lambda client: fetch_range(client, start + offset, out), key=key, stop=stop)

        run_in_flight(fetch, range(0, count, _RANGE_BYTES), width=_RANGES_IN_FLIGHT)
        return window

    return complete_part(target, size, read, progress)
