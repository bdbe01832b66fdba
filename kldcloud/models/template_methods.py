"""Which attributes of values a chat template may use, and what calling the methods costs it.

Not among a text's methods are those that pad to any width. `format` is `PlainFormat`, which does
not either.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from string import Formatter
from types import BuiltinMethodType
from typing import Final

from jinja2.runtime import LoopContext

from kldcloud.models.template_steps import Steps, TemplateRefusalError, Value

ATTRIBUTES: Final[Mapping[type, frozenset[str]]] = {
    str: frozenset(
        {
            *("capitalize", "casefold", "count", "endswith", "find", "index", "isalnum"),
            *("isalpha", "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle"),
            *("isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix"),
            *("replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split"),
            *("splitlines", "startswith", "strip", "swapcase", "title", "upper"),
        }
    ),
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"count", "index"}),
    tuple: frozenset({"count", "index"}),
    LoopContext: frozenset(
        {
            *("changed", "cycle", "depth", "depth0", "first", "index", "index0", "last"),
            *("length", "nextitem", "previtem", "revindex", "revindex0"),
        }
    ),
}
_TRYING_EACH: Final = frozenset(
    {"lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip"}
)
"""Methods that may try each character of their argument at each place of the text."""
_INTERNAL: Final = "_"
"""How the names of what jinja itself hands to a call begin."""


def pay_for_method(
    steps: Steps, method: BuiltinMethodType, args: Sequence[Value], kwargs: Mapping[str, Value]
) -> Sequence[Value]:
    """Spend what calling a method of a text, list, tuple or dict costs.

    Returns:
        The positional arguments to call it with: what can be read only once has been read.
    """
    owner, name = method.__self__, method.__name__
    given = [*args, *(each for key, each in kwargs.items() if not key.startswith(_INTERNAL))]
    if not isinstance(owner, str):
        steps.through(given)
        if isinstance(owner, list | tuple):
            steps.through(owner)
        return args
    steps.characters(len(owner))
    if name == "join" and given:
        items = steps.held(given[0])
        pay_for_joining(steps, owner, [each for each in items if isinstance(each, str)])
        return (items, *args[1:])
    steps.through(given)
    texts = [each for each in given if isinstance(each, str)]
    for mark in texts:
        steps.search(owner, mark)
    if name in _TRYING_EACH:
        steps.characters(len(owner) * sum(map(len, texts)))
    if name == "splitlines":
        steps.lines(owner)
    elif name in {"split", "rsplit"}:
        steps.spend(owner.count(texts[0]) if texts and texts[0] else len(owner))
    elif name == "replace" and len(texts) > 1:
        pay_for_replacing(steps, owner, texts[0], texts[1], given[2] if len(given) > 2 else -1)  # noqa: PLR2004
    return args


def pay_for_replacing(steps: Steps, text: str, old: str, new: str, most: int) -> None:
    """Spend for the length of what `text.replace(old, new, most)` gives."""
    steps.search(text, old)
    found = text.count(old)
    steps.characters(len(text) + (found if most < 0 else min(found, most)) * len(new))


def pay_for_joining(steps: Steps, separator: str, texts: Sequence[str]) -> None:
    """Spend for the length of what `separator.join(texts)` gives."""
    steps.characters(sum(map(len, texts)) + len(separator) * len(texts))


class PlainFormat:
    """`str.format` of fields that say nothing but which argument: no widths, no attributes."""

    def __init__(self, steps: Steps, text: str) -> None:
        self._steps = steps
        self._text = text

    def __call__(self, *args: Value, **kwargs: Value) -> str:
        parts: list[str] = []
        unnamed = itertools.count()
        for literal, field, spec, conversion in Formatter().parse(self._text):
            parts.append(self._steps.printed(literal))
            if field is None:
                continue
            named = field.isidentifier()
            if spec or conversion or not (named or field.isdigit() or not field):
                raise TemplateRefusalError("formats with widths or attributes, which none needs")
            value = kwargs[field] if named else args[int(field) if field else next(unnamed)]
            parts.append(self._steps.printed(value))
        return "".join(parts)
