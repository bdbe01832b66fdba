"""Where results live: a folder or an S3 bucket, with create-once commits and digests.

Nothing here imports boto3 until an `s3://` URI is opened.
"""

from __future__ import annotations

from kldcloud.store.base import ObjectInfo, Store, StoreProbe
from kldcloud.store.digest import sha256_bytes, sha256_file
from kldcloud.store.opening import check_usable, open_store, store_option

__all__ = [
    "ObjectInfo",
    "Store",
    "StoreProbe",
    "check_usable",
    "open_store",
    "sha256_bytes",
    "sha256_file",
    "store_option",
]
