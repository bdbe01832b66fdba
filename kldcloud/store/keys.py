"""Which keys a store accepts: nothing that could leave a folder or confuse a bucket."""

from __future__ import annotations

import re

from kldcloud.errors import StoreError

# S3 allows 1024 bytes for prefix and key together; every character allowed here is one byte.
MAX_KEY = 800
MAX_PREFIX = 200
_MAX_PART = 200  # file systems stop at 255

# A part may not begin with a dot, which rules out "..", "." and the folder store's own files.
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@,-]*", re.ASCII)


def check_key(key: str) -> str:
    """Return `key` if it may name an object.

    Raises:
        StoreError: it is empty, too long, absolute, or has a part that is not allowed.
    """
    if len(key) > MAX_KEY or not all(is_part(part) for part in key.split("/")):
        raise _not_allowed("key", key)
    return key


def check_prefix(prefix: str) -> str:
    """Return `prefix` if keys can start with it: "", whole parts, or a last part cut short.

    Raises:
        StoreError: no key starts so.
    """
    whole = prefix.removesuffix("/")
    if prefix and (len(prefix) > MAX_KEY or not all(is_part(part) for part in whole.split("/"))):
        raise _not_allowed("prefix", prefix)
    return prefix


def is_part(part: str) -> bool:
    """Say whether `part` may stand between two slashes of a key."""
    return len(part) <= _MAX_PART and _PART.fullmatch(part) is not None


def is_key(key: str) -> bool:
    """Say whether `key` may name an object."""
    return len(key) <= MAX_KEY and all(is_part(part) for part in key.split("/"))


def _not_allowed(kind: str, value: str) -> StoreError:
    shown = repr(value if len(value) <= 80 else value[:77] + "...")  # noqa: PLR2004 - one line
    return StoreError(
        f"store {kind} {shown} is not allowed",
        hint="use parts of letters, digits and _.+=@,- joined by single slashes,"
        " none beginning with a dot or a sign",
    )
