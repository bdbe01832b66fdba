"""How work and results look on a terminal: bars and notes on stderr, results on stdout."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
)
from rich.text import Text

from kldcloud.pipeline.progress import MEASURING, Bar
from kldcloud.store.base import Store

if TYPE_CHECKING:
    from kldcloud.status.live import LiveReader

errors = Console(stderr=True, highlight=False, soft_wrap=True)


class _RichBar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, amount: int = 1) -> None:
        self._progress.advance(self._task, amount)

    def reach(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total or None)


class _Times(ProgressColumn):
    """Time so far and, from the average pace of this launch, time to come.

    rich's own estimate looks half a minute back, in which a large model may finish no chunk.

    Args:
        before: how much was done before this launch.
        left: whether the time to come is shown.
    """

    def __init__(self, before: int, *, left: bool = True) -> None:
        super().__init__()
        self._before = before
        self._left = left

    def render(self, task: Task) -> Text:
        elapsed = task.elapsed or 0.0
        shown = _clock(elapsed)
        done = task.completed - self._before
        if self._left and task.total and done > 0 and task.completed < task.total:
            left = elapsed * (task.total - task.completed) / done
            shown += f", about {_clock(left)} left"
        return Text(shown, style="dim")


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"


class _Lines:
    """A bar for a log: a line a minute, so that hours of work do not look like a hang."""

    def __init__(self, label: str, total: int, done: int) -> None:
        self._label = label
        self._total = total
        self._done = done
        self._said_at = time.monotonic()

    def advance(self, amount: int = 1) -> None:
        self.reach(self._done + amount, self._total)

    def reach(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        if time.monotonic() - self._said_at >= LINE_SECONDS and total:
            self._said_at = time.monotonic()
            share = f"{100 * done / total:.0f}%"
            errors.print(
                f"{self._label}: {share}, {done:,} of {total:,}", style="dim", markup=False
            )


def _line_when_done(label: str, total: int, done: int) -> Iterator[Bar]:
    started = time.monotonic()
    yield _Lines(label, total, done)
    _leave_line(label, time.monotonic() - started)


def _leave_line(label: str, seconds: float) -> None:
    if seconds >= QUIET_SECONDS:
        errors.print(f"{label}: {seconds:.0f} s", style="dim", markup=False)


@contextmanager
def _shown(progress: Progress, label: str, total: int, done: int) -> Iterator[Bar]:
    """Show a bar unless its work is over at once, and leave a line where it was."""
    task = progress.add_task(label, total=total or None, completed=done)
    # What is over at once would only flicker.
    appear = threading.Timer(SHOWN_AFTER_SECONDS, progress.start)
    appear.daemon = True
    appear.start()
    try:
        yield _RichBar(progress, task)
    finally:
        appear.cancel()
        appear.join()
        progress.stop()
    finished = progress.tasks[0]
    _leave_line(label, finished.elapsed or 0.0)


class TerminalProgress:
    """Bars with the time left; where stderr is no terminal, a line a minute and one at the end."""

    def __init__(self) -> None:
        # A run that may stop is measured piece by piece: what was read is not read again.
        self._readers: dict[str, LiveReader] = {}

    @contextmanager
    def bar(self, label: str, total: int, done: int = 0) -> Iterator[Bar]:
        if not errors.is_terminal:
            yield from _line_when_done(label, total, done)
            return
        progress = Progress(*_COLUMNS, _Times(done), console=errors, transient=True)
        with _shown(progress, label, total, done) as bar:
            yield bar

    @contextmanager
    def measuring(self, store: Store, run: str, total: int, done: int = 0) -> Iterator[Bar]:
        """On a terminal, the run's running means stand below the bar."""
        if not errors.is_terminal:
            yield from _line_when_done(MEASURING, total, done)
            return
        from kldcloud.cli.live import REDRAWS_A_SECOND, MeansBelow, kept_up_to_date
        from kldcloud.status.live import LiveReader

        if run not in self._readers:
            self._readers[run] = LiveReader(store, run)
        view = MeansBelow(
            *_COLUMNS,
            _Times(done, left=False),
            console=errors,
            transient=True,
            refresh_per_second=REDRAWS_A_SECOND,
        )
        with _shown(view, MEASURING, total, done) as bar, kept_up_to_date(view, self._readers[run]):
            yield bar

    def note(self, text: str) -> None:
        errors.print(text, style="dim", markup=False)

    def warn(self, text: str) -> None:
        errors.print(f"warning: {text}", style="yellow", markup=False)


_COLUMNS = (
    TextColumn("{task.description}", markup=False),
    BarColumn(bar_width=30),
    TaskProgressColumn(),
)
LINE_SECONDS = 60.0
QUIET_SECONDS = 2.0
"""Work shorter than this leaves no line behind."""
SHOWN_AFTER_SECONDS = 0.3
"""Work shorter than this shows no bar."""


def encodable(text: str, console: Console) -> str:
    """Text in characters that the output's encoding has."""
    if console.encoding.startswith("utf"):
        return text
    return text.replace("±", "+-").encode(console.encoding, "backslashreplace").decode()


def stdout_console() -> Console:
    """Where results go; plain when it is no terminal."""
    return Console(file=sys.stdout, highlight=False)
