"""The bar of candidates being measured, with their running means below it."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.progress import Progress
from rich.text import Text

from kldcloud.errors import KldcloudError

if TYPE_CHECKING:
    from kldcloud.status.live import LiveReader

REDRAWS_A_SECOND = 2.0
LOOK_SECONDS = 0.5
"""Between two looks at the store, at least."""
SHARE_OF_TIME = 0.05
"""That looking may take, as far as `LONGEST_PAUSE` lets it: workers need the processor more."""
LONGEST_PAUSE = 5.0
LEAVE_SECONDS = 2.0
"""A store that answers more slowly does not hold up the end of the work."""


class MeansBelow(Progress):
    """A bar and, below it, lines that somebody else writes."""

    lines: tuple[str, ...] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, then the lines as they are: names are no markup."""
        yield from super().get_renderables()
        if self.lines:
            yield Text("\n".join(self.lines), no_wrap=True, overflow="crop")


@contextlib.contextmanager
def kept_up_to_date(view: MeansBelow, reader: LiveReader) -> Iterator[None]:
    """Look at the run's commits from time to time while the block runs."""
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(view, reader, over), name="live", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(LEAVE_SECONDS)


def _watch(view: MeansBelow, reader: LiveReader, over: threading.Event) -> None:
    from kldcloud.cli.terminal import encodable
    from kldcloud.report.live_text import live_lines

    console = view.console
    reader.begin(time.monotonic())
    for looks in itertools.count():
        began = time.monotonic()
        # A store that is away costs the view a look, and never the run.
        with contextlib.suppress(KldcloudError, OSError):
            status = reader.look(began)
            lines = live_lines(status, width=console.width, height=console.height - 2)
            view.lines = tuple(encodable(line, console) for line in lines)
        took = time.monotonic() - began
        # The first look imports what it needs, which says nothing about others.
        if over.wait(_pause(took) if looks else LOOK_SECONDS):
            return


def _pause(took: float) -> float:
    return min(max(LOOK_SECONDS, took / SHARE_OF_TIME), LONGEST_PAUSE)
