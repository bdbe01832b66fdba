"""A place in an S3 bucket as a store: conditional writes, parallel ranged reads."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from botocore.exceptions import ClientError, IncompleteReadError

from kldcloud.errors import FormatError, StoreError
from kldcloud.store.base import ObjectInfo, StoreProbe
from kldcloud.store.digest import DigestError, check_sha256, md5_header, sha256_bytes
from kldcloud.store.keys import check_key, check_prefix, is_key
from kldcloud.store.probe import probe_store
from kldcloud.store.s3_client import S3Bucket
from kldcloud.store.s3_errors import StrangeReplyError, code_of, is_taken, stated, status_of
from kldcloud.store.s3_multipart import abort_stale, upload_new
from kldcloud.store.s3_parallel import run_in_flight

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef

T = TypeVar("T")

# Eight requests of 8 MiB reached the loopback limit of the servers tried; more gained nothing.
RANGE_BYTES = 8 << 20
RANGES_IN_FLIGHT = 8
# Below this one request is as fast as several parts, and cheaper.
MULTIPART_FROM_BYTES = 32 << 20
_COPY_BYTES = 1 << 20
_READS_OF_WRONG_BYTES = 3
_DIGEST = "sha256"
"""Metadata of what is written in one request, which every later `read` of it is checked against."""


class S3Store:
    """Objects under `prefix` of a bucket, created once by `If-None-Match: *`."""

    def __init__(self, bucket: str, prefix: str) -> None:
        """Open the place; nothing is sent until the first request.

        Raises:
            StoreError: the AWS configuration is unusable.
        """
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._bucket = S3Bucket(bucket, uri=self.uri)
        self._bucket_exists = False

    def read(self, key: str, *, sha256: str | None = None, limit: int | None = None) -> bytes:
        """Return the whole object; see `Store.read`."""
        name = self._name(key)

        def fetch(client: S3Client) -> bytes:
            reply = client.get_object(Bucket=self._bucket.name, Key=name)
            with contextlib.closing(reply["Body"]) as body:
                stated(reply, "ETag")
                size = reply["ContentLength"]
                if limit is not None and size > limit:
                    raise FormatError(
                        f"{key} in {self.uri} has {size:,} bytes, more than the {limit:,} expected"
                    )
                data = body.read()
            promised = sha256 or reply["Metadata"].get(_DIGEST)
            check_sha256(data, promised, name=f"{key} in {self.uri}")
            return data

        return _until_right(lambda: self._bucket.call(fetch, key=key))

    def read_into(
        self, key: str, start: int, out: memoryview, *, sha256: str | None = None
    ) -> None:
        """Fill `out` from byte `start` with parallel ranged requests; see `Store.read_into`."""
        name, view = self._name(key), out.cast("B")
        if start < 0:
            raise FormatError(f"{key} in {self.uri} has no byte {start:,}")

        def fetch(offset: int, stop: threading.Event) -> None:
            part = view[offset : offset + RANGE_BYTES]
            self._bucket.call(
                lambda client: self._fetch_range(client, key, name, start + offset, part),
                key=key,
                stop=stop,
            )

        def fill() -> None:
            if len(view) <= RANGE_BYTES:
                fetch(0, threading.Event())
            else:
                run_in_flight(fetch, range(0, len(view), RANGE_BYTES), width=RANGES_IN_FLIGHT)
            check_sha256(view, sha256, name=f"bytes {start:,}+{len(view):,} of {key} in {self.uri}")

        _until_right(fill)

    def size(self, key: str) -> int | None:
        """Return the object's size in bytes, or None if there is no such object."""
        name = self._name(key)
        try:
            reply = self._bucket.call(
                lambda client: client.head_object(Bucket=self._bucket.name, Key=name),
                key=key,
                accept=lambda error: status_of(error) in (400, 403, 404),
            )
        except ClientError as error:
            if self._bucket_exists and status_of(error) == HTTPStatus.NOT_FOUND:
                return None
            # A reply to HEAD has no body: only another request tells a missing object from a
            # missing bucket, or wrong keys from too few rights.
            return self._size_with_reasons(key, name)
        return reply["ContentLength"]

    def write_new(self, key: str, data: bytes | memoryview) -> bool:
        """Create the object, or leave the one that is there; see `Store.write_new`."""
        name, view = self._name(key), memoryview(data).cast("B")
        if len(view) < MULTIPART_FROM_BYTES:
            return self._put_new(key, bytes(view))
        if self.size(key) is not None:
            return False
        return upload_new(
            self._bucket, name, len(view), lambda at, count: bytes(view[at : at + count])
        )

    def write_new_file(self, key: str, path: Path) -> bool:
        """As `write_new`, from a local file; a large one goes in parts of 16 MiB or more."""
        name = self._name(key)
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < MULTIPART_FROM_BYTES:
                    return self._put_new(key, file.read())
                if self.size(key) is not None:
                    return False
                abort_stale(self._bucket, self._prefix)

                def read_part(offset: int, count: int) -> bytes:
                    data = os.pread(file.fileno(), count, offset)
                    if len(data) != count:
                        raise StoreError(f"{path} shrank while it was uploaded")
                    return data

                return upload_new(self._bucket, name, size, read_part)
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from error

    def write(self, key: str, data: bytes) -> None:
        """Create or replace the object."""
        self._put(key, data, new=False)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Return the objects whose key starts with `prefix`, sorted by key."""
        asked = self._prefix + check_prefix(prefix)
        found: dict[str, int] = {}
        after = ""
        while True:
            page = self._page(asked, after, key=prefix)
            for each in page.get("Contents", []):
                key = each["Key"].removeprefix(self._prefix)
                if is_key(key):
                    found[key] = each["Size"]
            after = page.get("NextContinuationToken", "")
            if not page.get("IsTruncated") or not after:
                break
        # Not every server sorts as S3 does, byte by byte of the whole name.
        return iter([ObjectInfo(key, found[key]) for key in sorted(found)])

    def delete(self, key: str) -> None:
        """Delete the object; nothing happens if there is none."""
        name = self._name(key)
        with contextlib.suppress(ClientError):
            self._bucket.call(
                lambda client: client.delete_object(Bucket=self._bucket.name, Key=name),
                key=key,
                accept=_is_missing,
            )

    def probe(self) -> StoreProbe:
        """Try on throw-away keys what a run relies on, and remove them."""
        return probe_store(self, self._multipart_once)

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _size_with_reasons(self, key: str, name: str) -> int | None:
        def fetch(client: S3Client) -> int:
            try:
                reply = client.get_object(Bucket=self._bucket.name, Key=name)
            except ClientError as error:
                if code_of(error) == str(int(HTTPStatus.NOT_FOUND)):
                    # Its body was cut off on the way, and the reason with it.
                    raise StrangeReplyError("a 404 without a reason") from error
                raise
            reply["Body"].close()
            return reply["ContentLength"]

        try:
            size = self._bucket.call(fetch, key=key, accept=_is_missing)
        except ClientError:
            size = None
        self._bucket_exists = True
        return size

    def _multipart_once(self, key: str) -> str:
        self.write_new(key, b"first")
        created = upload_new(self._bucket, self._name(key), 6, lambda _at, _count: b"second")
        if created or self.read(key) != b"first":
            raise StoreError(
                f"{self.uri} let an upload in parts replace an object,"
                " so that two workers could commit one large shard",
                hint="use a store that honours If-None-Match when an upload completes"
                " (AWS S3, SeaweedFS) or a folder",
            )
        return "an upload in parts to a key that is taken is refused"

    def _put_new(self, key: str, body: bytes) -> bool:
        # If a reply was lost, the retry meets this call's own object: the same answer as for
        # another's, since the bytes under a key are determined by the key.
        try:
            self._put(key, body, new=True)
        except ClientError:
            return False
        return True

    def _put(self, key: str, body: bytes, *, new: bool) -> None:
        """Write in one request; a ClientError says that a new object met an old one."""
        name = self._name(key)
        md5, sha256 = md5_header(body), sha256_bytes(body)

        def send(client: S3Client) -> None:
            put = partial(
                client.put_object,
                Bucket=self._bucket.name,
                Key=name,
                Body=body,
                ContentMD5=md5,
                Metadata={_DIGEST: sha256},
            )
            stated(put(IfNoneMatch="*") if new else put(), "ETag")

        self._bucket.call(send, key=key, accept=is_taken if new else None)

    def _fetch_range(
        self, client: S3Client, key: str, name: str, start: int, part: memoryview
    ) -> None:
        if not part:
            return
        end = start + len(part)
        reply = client.get_object(
            Bucket=self._bucket.name, Key=name, Range=f"bytes={start}-{end - 1}"
        )
        with contextlib.closing(reply["Body"]) as body:
            stated(reply, "ETag")
            whole = reply.get("ContentRange", "").rpartition("/")[2]
            if not whole:
                raise StoreError(f"{self._bucket.endpoint} does not honour ranged reads")
            if reply["ContentLength"] != len(part):
                raise FormatError(
                    f"{key} in {self.uri} ends at byte {whole},"
                    f" before the range {start:,} to {end:,}"
                )
            filled = 0
            while filled < len(part):
                piece = part[filled : filled + _COPY_BYTES]
                count = body.readinto(piece)  # type: ignore[arg-type]  # its stub wants a file
                if not count:
                    raise IncompleteReadError(actual_bytes=filled, expected_bytes=len(part))
                filled += count

    def _page(self, prefix: str, after: str, *, key: str) -> ListObjectsV2OutputTypeDef:
        def fetch(client: S3Client) -> ListObjectsV2OutputTypeDef:
            ask = partial(client.list_objects_v2, Bucket=self._bucket.name, Prefix=prefix)
            page = ask(ContinuationToken=after) if after else ask()
            stated(page, "IsTruncated")
            return page

        return self._bucket.call(fetch, key=key)


def _until_right(read: Callable[[], T]) -> T:
    """Read again what has the wrong digest: only what is wrong each time is wrong where it lies."""
    for _ in range(_READS_OF_WRONG_BYTES - 1):
        with contextlib.suppress(DigestError):
            return read()
    return read()


def _is_missing(error: Exception) -> bool:
    return code_of(error) == "NoSuchKey"
