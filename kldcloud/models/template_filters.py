"""The filters and tests of chat templates; each spends its steps before it works.

The filters are those that llama.cpp's own template engine has: what it cannot render, nobody who
talks to a GGUF has ever seen. That leaves out what draws at random and what pads to any width.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from jinja2 import Environment, pass_environment
from jinja2.filters import make_attrgetter

from kldcloud.models.template_methods import pay_for_joining, pay_for_replacing
from kldcloud.models.template_steps import (
    Function,
    Lazy,
    Steps,
    TemplateRefusalError,
    Value,
)

Preparation = Callable[[Steps, Value, Sequence[Value]], Value]
"""Spends the steps of a filter: its value and other arguments in, the value that it gets out."""

_CHEAP: Final = ("abs", "count", "d", "default", "first", "last", "length")
_OF_TEXT: Final = ("capitalize", "lower", "trim", "truncate", "upper")
_OF_WORDS: Final = ("title", "wordcount")
_OF_DIGITS: Final = ("float", "int")
_OF_ITEMS: Final = ("items", "list", "reverse")
_LAZY: Final = ("map", "reject", "rejectattr", "select", "selectattr")
_COMPARING: Final = ("dictsort", "max", "min", "sort", "unique")
_COMPARISONS: Final = 20
"""Of an item, in a sort of a million."""
_MOST_INDENT: Final = 64

_LOOKING: Final = (
    *("boolean", "callable", "defined", "escaped", "false", "float", "integer", "iterable"),
    *("mapping", "none", "number", "sameas", "sequence", "string", "true", "undefined"),
)
"""Tests that look at the kind of a value and not into it."""
_ARITHMETIC: Final = ("divisibleby", "even", "odd")


def bounded_filters(builtin: Mapping[str, Function], steps: Steps) -> dict[str, Function]:
    """The filters of chat templates, by name.

    Args:
        builtin: jinja's.
        steps: what they spend.
    """
    kinds = (
        (_cheap, _CHEAP),
        (_text, _OF_TEXT),
        (_words, _OF_WORDS),
        (_digits, _OF_DIGITS),
        (_items, _OF_ITEMS),
        (_one_by_one, _LAZY),
        (_compared, _COMPARING),
    )
    bounded = {
        name: _after(prepare, steps, builtin[name]) for prepare, names in kinds for name in names
    }
    bounded |= {name: _lazy(bounded[name]) for name in _LAZY}
    return bounded | {
        "indent": _indent(steps, builtin["indent"]),
        "join": _join(steps),
        "replace": functools.partial(_replace, steps),
        "safe": steps.printed,  # nothing is escaped, so there is nothing to spare from it
        "string": steps.printed,
        "sum": _sum(steps),
        "tojson": functools.partial(_tojson, steps),
    }


def bounded_tests(builtin: Mapping[str, Function], steps: Steps) -> dict[str, Function]:
    """The tests of chat templates, by name: all of jinja's."""
    kinds = dict.fromkeys(_LOOKING, _cheap) | dict.fromkeys(_ARITHMETIC, _numbers)
    bounded = {
        name: _after(kinds.get(name, _seen_through), steps, test) for name, test in builtin.items()
    }
    return bounded | {"in": functools.partial(is_in, steps)}


def is_in(steps: Steps, value: Value, within: Value) -> bool:
    """Whether a value is in another, as Python has it."""
    if isinstance(value, str) and isinstance(within, str):
        steps.search(within, value)
    else:
        within = steps.held(within)
        steps.through(value)
        steps.through(within)
    return value in within


def _after(prepare: Preparation, steps: Steps, function: Function) -> Function:
    """The function, with its steps spent; it is called with jinja's context first if it asks."""
    at = int(hasattr(function, "jinja_pass_arg"))

    @functools.wraps(function)
    def bounded(*args: Value, **kwargs: Value) -> Value:
        value = prepare(steps, args[at], (*args[at + 1 :], *kwargs.values()))
        return function(*args[:at], value, *args[at + 1 :], **kwargs)

    return bounded


def _lazy(function: Function) -> Function:
    @functools.wraps(function)
    def lazy(context: Value, value: Value, *args: Value, **kwargs: Value) -> Lazy:
        return Lazy(function(context, value, *args, **kwargs), value)

    return lazy


def _cheap(steps: Steps, value: Value, rest: Sequence[Value]) -> Value:  # noqa: ARG001
    steps.spend(1)
    return value


def _text(steps: Steps, value: Value, rest: Sequence[Value]) -> Value:
    text = steps.printed(value)
    for each in rest:
        if isinstance(each, str):  # such as the characters to trim: each is tried for each
            steps.characters(len(text) * len(each))
    return text


def _words(steps: Steps, value: Value, rest: Sequence[Value]) -> Value:  # noqa: ARG001
    text = steps.printed(value)
    steps.spend(len(text))
    return text


def _digits(steps: Steps, value: Value, rest: Sequence[Value]) -> Value:  # noqa: ARG001
    steps.characters(len(value) if isinstance(value, str) else 1)
    return value


def _items(steps: Steps, value: Value, rest: Sequence[Value]) -> Value:  # noqa: ARG001
    return steps.held(value)


def _one_by_one(steps: Steps, value: Value, rest: Sequence[Value]) -> Value:
    if value is None:
        return value  # which jinja takes for an empty list
    names = sum(len(each) for each in rest if isinstance(each, str))
    return steps.each(value, 1 + names)


def _compared(steps: Steps, value: Value, rest: Sequence[Value]) -> Value:
    found = steps.held(value)
    names = sum(len(each) for each in rest if isinstance(each, str))
    steps.spend(len(found) * names)
    for _ in range(_COMPARISONS):
        steps.through(found)
    return found


def _seen_through(steps: Steps, value: Value, rest: Sequence[Value]) -> Value:
    for each in (value, *rest):
        steps.through(each)
    return value


def _numbers(steps: Steps, value: Value, rest: Sequence[Value]) -> Value:
    for each in (value, *rest):
        # A text would be taken for a format, with widths in it.
        if not isinstance(each, int | float):
            raise TemplateRefusalError(f"divides a {type(each).__name__}")
        steps.through(each)
    return value


def _indent(steps: Steps, indent: Function) -> Function:
    def bounded(
        value: Value, width: Value = 4, first: Value = False, blank: Value = False
    ) -> Value:
        text = steps.printed(value)
        if isinstance(width, int) and width <= _MOST_INDENT:
            width = " " * width
        if not isinstance(width, str):
            raise TemplateRefusalError(f"indents a text by more than {_MOST_INDENT}")
        steps.characters(steps.lines(text) * len(width))
        return indent(text, width, first, blank)

    return bounded


def _replace(steps: Steps, value: Value, old: Value, new: Value, count: int | None = None) -> str:
    text, mark, other = (steps.printed(each) for each in (value, old, new))
    most = -1 if count is None else count
    pay_for_replacing(steps, text, mark, other, most)
    return text.replace(mark, other, most)


def _join(steps: Steps) -> Function:
    @pass_environment
    def bounded(
        environment: Environment, value: Value, d: Value = "", attribute: Value = None
    ) -> str:
        items = _taken(environment, steps, value, attribute)
        separator, texts = steps.printed(d), [steps.printed(each) for each in items]
        pay_for_joining(steps, separator, texts)
        return separator.join(texts)

    return bounded


def _sum(steps: Steps) -> Function:
    @pass_environment
    def bounded(
        environment: Environment, value: Value, attribute: Value = None, start: Value = 0
    ) -> Value:
        items = _taken(environment, steps, value, attribute)
        # Lists would be copied once for each that is added.
        if not all(isinstance(each, int | float) for each in (start, *items)):
            raise TemplateRefusalError("sums up what is no number")
        return sum(items, start)

    return bounded


def _taken(environment: Environment, steps: Steps, value: Value, attribute: Value) -> Value:
    """The items of a list, or an attribute of each."""
    items = steps.held(value)
    if attribute is None:
        return items
    if not isinstance(attribute, str | int):
        raise TemplateRefusalError("names an attribute by what is no name")
    steps.spend(len(items) * len(str(attribute)))
    return [make_attrgetter(environment, attribute)(each) for each in items]


def _tojson(
    steps: Steps,
    value: Value,
    ensure_ascii: Value = False,
    indent: Value = None,
    separators: Value = None,
    sort_keys: Value = False,
) -> str:
    """JSON as chat templates mean it, which is transformers': nothing is escaped for HTML."""
    wide = 0
    if indent is not None:
        if not isinstance(indent, int) or not 0 <= indent <= _MOST_INDENT:
            raise TemplateRefusalError(f"indents JSON by more than {_MOST_INDENT}")
        wide += indent
    if separators is not None:
        between_items, after_keys = (steps.printed(each) for each in steps.held(separators))
        separators = (between_items, after_keys)
        wide += len(between_items) + len(after_keys)
    for _ in range(1 + wide):
        steps.through(value)
    return json.dumps(
        value,
        ensure_ascii=bool(ensure_ascii),
        indent=indent,
        separators=separators,
        sort_keys=bool(sort_keys),
    )
