"""A Ctrl-C that Python drops on the floor is picked up again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kldcloud.clusters.interrupts import never_swallowed, put_off


class _Falls:
    """Raises a signal where Python ignores what is raised, as around a fork."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)
        for _ in range(3):
            pass


class _Breaks:
    """Raises something else where Python ignores it."""

    def __del__(self) -> None:
        raise ValueError("not an interrupt")


def blocked(reached: list[str], *steps: Callable[[], object]) -> None:
    with never_swallowed():
        for step in steps:
            step()
            reached.append(step.__name__)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def fail() -> None:
    raise RuntimeError("it did not start")


def fork() -> None:
    # A function to call in the child makes Python fork as Ray does, with the callbacks.
    subprocess.run([sys.executable, "-c", ""], preexec_fn=os.getpid, check=True)


@pytest.fixture
def forks() -> Iterator[list[str]]:
    """What the callbacks around a fork did; a signal arrives in the first of them."""
    done: list[str] = []
    armed = True

    def before() -> None:
        if armed:
            interrupt()
            done.append("began")

    def after() -> None:
        if armed:
            done.append("ended")

    os.register_at_fork(before=before, after_in_parent=after)
    yield done
    armed = False


def test_an_interrupt_that_a_callback_lost_comes_out_of_the_block() -> None:
    reached: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        blocked(reached, _Falls, time.time)
    assert reached == ["_Falls", "time"], "the interrupt was to be lost first"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_during_a_fork_leaves_its_callbacks_whole(
    monkeypatch: pytest.MonkeyPatch, forks: list[str]
) -> None:
    reported: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    with pytest.raises(KeyboardInterrupt):
        blocked(forks, fork, time.time)
    assert forks == ["began", "ended", "fork", "time"]
    assert reported == []


def test_it_outweighs_what_failed_because_of_it() -> None:
    with pytest.raises(KeyboardInterrupt):
        blocked([], _Falls, fail)
    with pytest.raises(RuntimeError):
        blocked([], fail)


def test_only_the_interrupt_goes_unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: reported.append(dropped.exc_type))
    hook = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt):
        blocked([], _Falls, _Breaks)
    assert reported == [ValueError], "an interrupt that comes out of the block is no news"
    assert sys.unraisablehook is hook


def test_one_that_is_raised_ends_the_block_at_once() -> None:
    reached: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        blocked(reached, interrupt, time.time)
    assert reached == []


def test_without_one_nothing_happens_and_the_handler_is_as_before() -> None:
    before = signal.getsignal(signal.SIGINT)
    with never_swallowed():
        pass
    assert signal.getsignal(signal.SIGINT) is before


def test_a_handler_of_somebody_else_and_other_threads_are_left_alone() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        blocked([], interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]

    ended: list[str] = []

    def elsewhere() -> None:
        with never_swallowed():
            ended.append("well")

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert ended == ["well"]


def test_one_that_is_put_off_comes_at_the_end_of_the_block() -> None:
    reached: list[str] = []

    def ends() -> None:
        with put_off():
            for step in (interrupt, interrupt, fail):
                reached.append(step.__name__)
                step()

    with pytest.raises(KeyboardInterrupt):
        ends()
    assert reached == ["interrupt", "interrupt", "fail"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_block_that_nobody_interrupts_ends_as_it_would() -> None:
    with pytest.raises(RuntimeError, match="did not start"), put_off():
        fail()
    with put_off():
        pass
    other = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with put_off():
            interrupt()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, other)
