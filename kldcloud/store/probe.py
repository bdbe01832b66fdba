"""Trying out a store before a run depends on it, for `kldcloud check`."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from kldcloud.errors import FormatError, KldcloudError, StoreError
from kldcloud.store.base import Store, StoreProbe
from kldcloud.store.digest import sha256_bytes

_RACERS = 8


def probe_store(store: Store, *more: Callable[[str], str]) -> StoreProbe:
    """Run each try in turn, stop at the first that fails, and remove what was written.

    Args:
        store: the store to try.
        more: further tries for one kind of store. Each gets a fresh key and returns a finding,
            or raises a KldcloudError.
    """
    tries = (_create_once, _race, _read_back, _replace, _list_and_delete)
    findings: list[str] = []
    folder = f"probe/{uuid.uuid4().hex}"
    keys = [f"{folder}/{at}" for at in range(len(tries) + len(more))]
    try:
        for at, attempt in enumerate(tries):
            findings.append(attempt(store, keys[at]))
        for at, extra in enumerate(more, start=len(tries)):
            findings.append(extra(keys[at]))
    except KldcloudError as error:
        findings.append(str(error))
        return StoreProbe(ok=False, findings=tuple(findings))
    finally:
        for key in keys:
            # The finding already says what is wrong; a second error would hide it.
            with contextlib.suppress(KldcloudError):
                store.delete(key)
    return StoreProbe(ok=True, findings=tuple(findings))


def _create_once(store: Store, key: str) -> str:
    if not store.write_new(key, b"first"):
        raise StoreError(f"{store.uri} says that a fresh key is taken")
    if store.write_new(key, b"second") or store.read(key) != b"first":
        raise _not_once(store)
    return "a second create-only write to a key is refused"


def _race(store: Store, key: str) -> str:
    with ThreadPoolExecutor(_RACERS) as pool:
        bodies = [f"writer {at}".encode() for at in range(_RACERS)]
        created = list(pool.map(lambda body: store.write_new(key, body), bodies))
    if created.count(True) != 1 or store.read(key) != bodies[created.index(True)]:
        raise _not_once(store)
    return f"of {_RACERS} writers at once exactly one creates the object"


def _read_back(store: Store, key: str) -> str:
    data = bytes(range(256)) * 16
    store.write(key, data)
    size = store.size(key)
    if size != len(data):
        raise FormatError(f"{store.uri} reports {size} bytes for an object of {len(data)}")
    store.read(key, sha256=sha256_bytes(data), limit=len(data))
    part = bytearray(1000)
    store.read_into(key, 300, memoryview(part), sha256=sha256_bytes(data[300:1300]))
    return "objects and ranges of them read back unchanged"


def _replace(store: Store, key: str) -> str:
    store.write(key, b"old")
    store.write(key, b"new")
    if store.read(key) != b"new":
        raise StoreError(f"{store.uri} returns an object's old content after a write")
    return "a plain write replaces an object at once"


def _list_and_delete(store: Store, key: str) -> str:
    store.write(key, b"listed")
    if [each.key for each in store.list(key)] != [key]:
        raise StoreError(f"{store.uri} does not list an object that was just written")
    store.delete(key)
    store.delete(key)
    if store.size(key) is not None or list(store.list(key)):
        raise StoreError(f"{store.uri} still shows an object after its deletion")
    return "objects are listed, and gone once deleted"


def _not_once(store: Store) -> StoreError:
    return StoreError(
        f"{store.uri} let a create-only write replace an object,"
        " so that two workers could commit one shard",
        hint="use a store that honours If-None-Match (AWS S3, SeaweedFS, recent MinIO) or a folder",
    )
