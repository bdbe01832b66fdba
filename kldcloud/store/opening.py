"""From what a person typed to an open store."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kldcloud.errors import SpecError
from kldcloud.store.base import Store
from kldcloud.store.folder import FolderStore
from kldcloud.store.keys import MAX_PREFIX, is_part

# One letter and a colon would be a Windows drive.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_FORMS = "use a path, file:///path or s3://bucket/prefix"


def open_store(uri: str) -> Store:
    """Open a folder (a path or `file:///path`) or a place in a bucket (`s3://bucket/prefix`).

    A folder need not exist yet: the first write makes it. The endpoint, region and keys of S3
    come from the ordinary AWS environment and configuration files.

    Raises:
        SpecError: the URI has another scheme, or names no folder or bucket.
        StoreError: the path is a file, or the AWS configuration is unusable.
    """
    if not uri.strip() or not uri.isprintable():
        raise SpecError(f"store {uri[:80]!r} is not a place", hint=_FORMS)
    scheme = _SCHEME.match(uri)
    if scheme is None:
        return FolderStore(_expanded(uri))
    if scheme[1].lower() == "file":
        return FolderStore(_file_path(uri))
    if scheme[1].lower() == "s3":
        bucket, prefix = _bucket_and_prefix(uri)
        from kldcloud.store.s3 import S3Store

        return S3Store(bucket, prefix)
    # Only the scheme is repeated: the rest may hold a password.
    raise SpecError(f"store URIs that begin with {scheme[1]}: are not supported", hint=_FORMS)


def store_option(uri: str) -> str:
    """`--store` and its value as a command that is to be pasted has them: quoted for a shell."""
    return f"--store {shlex.quote(uri)}"


def check_usable(store: Store) -> None:
    """Find out, before any work and without writing, what would stop the first write.

    Raises:
        StoreError: no such bucket, wrong keys, no answer; a folder that cannot be written.
    """
    store.size("runs/any")
    if isinstance(store, FolderStore):
        store.check_writable()


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise SpecError(f"store {path!r}: no such user's home folder", hint=_FORMS) from error


def _file_path(uri: str) -> Path:
    parts = urlsplit(uri)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        raise SpecError("a file: store needs an absolute path on this machine", hint=_FORMS)
    return _expanded(path)


def _bucket_and_prefix(uri: str) -> tuple[str, str]:
    rest = re.sub(r"(?i)^s3:(//)?", "", uri)
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket:
        raise SpecError(
            "an s3: store takes no keys in its URI",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        )
    if "://" not in uri or not _BUCKET.fullmatch(bucket):
        raise SpecError(
            f"store {uri[:80]!r} names no bucket (3 to 63 of a-z, 0-9, dot and dash)", hint=_FORMS
        )
    prefix = prefix.strip("/")
    if prefix and (len(prefix) > MAX_PREFIX or not all(map(is_part, prefix.split("/")))):
        raise SpecError(
            f"store {uri[:80]!r}: its prefix has a part that is not allowed",
            hint="use letters, digits and _.+=@,- with single slashes",
        )
    return bucket, prefix
