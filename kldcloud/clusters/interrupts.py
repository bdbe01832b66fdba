"""Ctrl-C while somebody else's code starts processes."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def never_swallowed() -> Iterator[None]:
    """A block out of which a Ctrl-C comes as KeyboardInterrupt, even if the block lost it.

    Python drops what is raised in callbacks around a fork (the lock of `logging` has some), and
    says so on stderr at most. Ray forks many times while it starts: one Ctrl-C in forty was lost.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # no signal arrives here
        return
    heard = False

    def listen(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        heard = True
        signal.default_int_handler(number, frame)

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield  # whoever changed that has plans of their own
        return
    signal.signal(signal.SIGINT, listen)
    try:
        yield
    except Exception as error:
        if heard:  # what was lost left something behind that did not work
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if heard:
        raise KeyboardInterrupt
