"""Ctrl-C while somebody else's code starts or ends processes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def never_swallowed() -> Iterator[None]:
    """A block out of which a Ctrl-C comes as KeyboardInterrupt, even if the block lost it.

    Python drops what is raised in callbacks around a fork (the locks of `logging` and `filelock`
    have some), prints its traceback, and leaves the callback half done: the next one trips over
    that. Ray forks many times while it starts: one Ctrl-C in forty was lost. So a Ctrl-C during a
    fork of this thread is noted and comes out at the end of the block. One that gets lost all the
    same (a finaliser, a callback that was registered later) does too, without its traceback.
    """
    if not _is_pythons():
        yield
        return
    report_before = sys.unraisablehook
    ear = _Ear()

    def report(dropped: sys.UnraisableHookArgs) -> None:
        if not (ear.heard and issubclass(dropped.exc_type, KeyboardInterrupt)):
            report_before(dropped)

    signal.signal(signal.SIGINT, ear.listen)
    sys.unraisablehook = report
    try:
        yield
    except Exception as error:
        if ear.heard:  # what was lost left something behind that did not work
            raise KeyboardInterrupt from error
        raise
    finally:
        sys.unraisablehook = report_before
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if ear.heard:
        raise KeyboardInterrupt


@contextlib.contextmanager
def put_off() -> Iterator[None]:
    """A block that a Ctrl-C does not cut short: it comes out of its end.

    Ray takes seconds to end, in which an impatient person presses Ctrl-C again. If that stops us
    half-way, Ray finds its node gone and ends this process without a word.
    """
    if not _is_pythons():
        yield
        return
    heard = []
    signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if heard:
            raise KeyboardInterrupt


def _is_pythons() -> bool:
    """Whether Ctrl-C arrives in this thread, and nobody has plans of their own for it."""
    return _in_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler


class _Ear:
    """Hears Ctrl-C, and raises KeyboardInterrupt at once unless its thread is just forking."""

    def __init__(self) -> None:
        self.heard = False
        self._forking = False
        # The last to register is called first before a fork and last after it: round all others.
        # Nothing unregisters these; a process starts Ray once or twice.
        os.register_at_fork(
            before=self._fork_begins,
            after_in_parent=self._fork_ends,
            after_in_child=self._fork_ends,
        )

    def listen(self, number: int, frame: FrameType | None) -> None:
        self.heard = True
        if not self._forking:
            signal.default_int_handler(number, frame)

    def _fork_begins(self) -> None:
        self._forking = _in_main_thread()

    def _fork_ends(self) -> None:
        self._forking = False


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
