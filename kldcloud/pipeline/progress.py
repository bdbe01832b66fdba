"""What the pipeline tells a person while it works; the command line decides how it looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Bar(Protocol):
    """One piece of work under way."""

    def advance(self, amount: int = 1) -> None: ...

    def reach(self, done: int, total: int) -> None:
        """Set both numbers, for work whose size is learnt on the way."""
        ...


class Progress(Protocol):
    """Bars and one-line notes."""

    def bar(self, label: str, total: int, done: int = 0) -> AbstractContextManager[Bar]: ...

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


class _SilentBar:
    def advance(self, amount: int = 1) -> None: ...

    def reach(self, done: int, total: int) -> None: ...


class Silent:
    """Progress for programs: nothing is shown."""

    @contextmanager
    def bar(self, label: str, total: int, done: int = 0) -> Iterator[Bar]:  # noqa: ARG002
        yield _SilentBar()

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...
