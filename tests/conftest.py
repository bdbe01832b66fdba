"""Fixtures that tests of several rooms share."""

from __future__ import annotations

from store_server import s3_server, s3_store_uri

__all__ = ["s3_server", "s3_store_uri"]
