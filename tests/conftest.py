"""Fixtures that tests of several rooms share."""

from __future__ import annotations

import signal

from store_server import s3_server, s3_store_uri

__all__ = ["s3_server", "s3_store_uri"]

# A shell that runs the tests in the background has them, and all that they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
