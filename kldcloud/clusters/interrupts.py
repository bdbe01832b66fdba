"""Ctrl-C while somebody else's code starts processes."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def never_swallowed() -> Iterator[None]:
    """A block out of which a Ctrl-C comes as KeyboardInterrupt, even if the block lost it.

    Python drops what is raised in callbacks around a fork (the locks of `logging` and `filelock`
    have some), and prints its traceback. Ray forks many times while it starts: one Ctrl-C in forty
    was lost. As it comes out of the block all the same, its traceback is not printed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # no signal arrives here
        return
    heard = False

    def listen(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        heard = True
        signal.default_int_handler(number, frame)

    def report(dropped: sys.UnraisableHookArgs) -> None:
        if not (heard and issubclass(dropped.exc_type, KeyboardInterrupt)):
            report_before(dropped)

    before, report_before = signal.getsignal(signal.SIGINT), sys.unraisablehook
    if before is not signal.default_int_handler:
        yield  # whoever changed that has plans of their own
        return
    signal.signal(signal.SIGINT, listen)
    sys.unraisablehook = report
    try:
        yield
    except Exception as error:
        if heard:  # what was lost left something behind that did not work
            raise KeyboardInterrupt from error
        raise
    finally:
        sys.unraisablehook = report_before
        signal.signal(signal.SIGINT, before)
    if heard:
        raise KeyboardInterrupt
