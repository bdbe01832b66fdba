"""What rendering a chat template may cost: steps, spent before the work that they stand for.

A template comes with a model file, from anywhere. Its time and memory are bounded by counting and
not by a clock, so that a template is refused on every machine or on none. A step is a node of the
template that is evaluated, an item that is gone through, or 16 characters of text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from jinja2 import Undefined

Value = Any
"""What a template can hold."""
Function = Callable[..., Any]

CHARACTERS_A_STEP: Final = 16
_STEPS: Final = 1 << 21
_STEPS_A_MESSAGE: Final = 4000
"""The templates that llama.cpp carries take some hundreds a message; two of them look back over
the conversation at each, and take some thousands a message where there are two thousand."""
_STEPS_A_CHARACTER: Final = 2
_MOST_BITS: Final = 4096
"""Of a whole number: powers and products of larger ones cost time and memory of their own."""
_MOST_NESTED: Final = 64
_LINE_BREAKS: Final = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_FEW: Final = 100
_SHORT: Final = 2500
"""Below either, CPython looks for one text in another by trying each place."""
_TRIES_A_STEP: Final = 512
_VIEWS: Final = frozenset(map(type, ({}.keys(), {}.values(), {}.items())))
_CONTAINERS: Final = frozenset({list, tuple, dict}) | _VIEWS
_SIZED: Final = _CONTAINERS | {str, range, Undefined}
_PRINTED: Final = frozenset({bool, int, float, type(None), Undefined})


class TemplateRefusalError(Exception):
    """What a template wants and does not get; the words go on from "the chat template"."""


class TooManyStepsError(TemplateRefusalError):
    """A rendering has spent all its steps."""


class Steps:
    """The steps that a template has left."""

    def __init__(self) -> None:
        self._left = 0

    def allow(self, messages: int, characters: int) -> None:
        """Begin a rendering, with what a conversation of that size may take."""
        self._left = _STEPS + _STEPS_A_MESSAGE * messages + _STEPS_A_CHARACTER * characters

    def spend(self, count: int) -> None:
        """Take steps.

        Raises:
            TooManyStepsError: if there are not so many left.
        """
        self._left -= count
        if self._left < 0:
            raise TooManyStepsError("takes more steps or memory than a conversation can need")

    def characters(self, count: int) -> None:
        """Take the steps of handling so many characters."""
        self.spend(1 + count // CHARACTERS_A_STEP)

    def lines(self, text: str) -> int:
        """How many lines a text has at most, paid for."""
        self.characters(len(text))
        count = 1 + sum(text.count(mark) for mark in _LINE_BREAKS)
        self.spend(count)
        return count

    def bits(self, count: int) -> None:
        """Refuse a whole number of more bits than any that is worked with."""
        if count > _MOST_BITS:
            raise TemplateRefusalError("works with numbers of more than a thousand digits")

    def search(self, text: str, mark: str) -> None:
        """Take the steps of looking for one text in another."""
        self.characters(len(text) + len(mark))
        if len(mark) < _FEW or len(text) < _SHORT:
            self.spend(len(text) * len(mark) // _TRIES_A_STEP)

    def through(self, value: Value, *, printing: bool = False) -> None:  # noqa: C901
        """Take the steps of going through a value and all that is in it, as a comparison does.

        What is in a list twice counts twice, for so often it will be gone through.

        Args:
            value: anything that a template holds.
            printing: refuse what has no text of its own, such as a function.
        """
        # In one piece: a call for each item would cost more than all else here.
        within = [iter((value,))]
        cost = 0
        while within:
            for each in within[-1]:
                kind = type(each)
                cost += 1
                if kind is str:
                    cost += len(each) // CHARACTERS_A_STEP
                elif kind in _CONTAINERS:
                    within.append(iter(each.items() if kind is dict else each))
                    break
                elif kind is int:
                    if each.bit_length() > _MOST_BITS:
                        self.bits(each.bit_length())
                elif kind is range:
                    cost += len(each)
                elif printing and kind not in _PRINTED:
                    raise _no_text(each)
                if cost > self._left:
                    break
            else:
                within.pop()
            if cost > self._left:
                break
            if len(within) > _MOST_NESTED:
                raise TemplateRefusalError(f"nests lists more than {_MOST_NESTED} deep")
        self.spend(cost)

    def printed(self, value: Value) -> str:
        """The text of a value; it is the same in every process, so it is never an address."""
        if isinstance(value, str):
            self.characters(len(value))
            return value
        if isinstance(value, range) or type(value) in _VIEWS:
            raise _no_text(value)
        self.through(value, printing=True)
        return str(value)

    def each(self, items: Iterable[Value], cost: int) -> Iterator[Value]:
        """The items, each for its steps."""
        for item in items:
            self._left -= cost
            if self._left < 0:
                self.spend(0)
            yield item

    def held(self, items: Value) -> Value:
        """The items, paid for; those that can only be read once are read into a list."""
        if type(items) in _SIZED:
            self.spend(1 + len(items))
            return items
        return list(self.each(items, 1))


class Lazy:
    """What a filter gives that works as it is read: jinja's own would be a generator.

    Generators of generators bring down Python itself when there are tens of thousands of them.

    Args:
        items: what the filter made.
        source: what it was made from.
    """

    def __init__(self, items: Iterable[Value], source: Value) -> None:
        self._items = iter(items)
        self.nested: int = source.nested + 1 if isinstance(source, Lazy) else 0
        if self.nested > _MOST_NESTED:
            raise TemplateRefusalError(f"nests filters more than {_MOST_NESTED} deep")

    def __iter__(self) -> Iterator[Value]:
        return self

    def __next__(self) -> Value:
        return next(self._items)


def _no_text(value: Value) -> TemplateRefusalError:
    return TemplateRefusalError(f"prints a {type(value).__name__}, which is no text")
