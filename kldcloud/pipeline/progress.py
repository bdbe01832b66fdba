"""What the pipeline tells a person while it works; the command line decides how it looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final, Protocol

from kldcloud.store.base import Store

MEASURING: Final = "measuring"
"""What the work of `Progress.measuring` is called."""


class Bar(Protocol):
    """One piece of work under way."""

    def advance(self, amount: int = 1) -> None: ...

    def reach(self, done: int, total: int) -> None:
        """Set both numbers, for work whose size is learnt on the way."""
        ...


class Progress(Protocol):
    """Bars and one-line notes."""

    def bar(self, label: str, total: int, done: int = 0) -> AbstractContextManager[Bar]: ...

    def measuring(
        self, store: Store, run: str, total: int, done: int = 0
    ) -> AbstractContextManager[Bar]:
        """The bar of candidates being measured, in chunk evaluations.

        The run's commits in the store tell their running means, if there is room to show them.
        """
        ...

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

    @contextmanager
    def measuring(
        self,
        store: Store,  # noqa: ARG002
        run: str,  # noqa: ARG002
        total: int,  # noqa: ARG002
        done: int = 0,  # noqa: ARG002
    ) -> Iterator[Bar]:
        yield _SilentBar()

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...
