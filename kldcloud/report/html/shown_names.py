"""What a chart calls each candidate: short, visible, and never two alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kldcloud.report.escaping import printable

# Vega keeps groups as properties of an object, so a group may not be called like one that every
# object has.
_TAKEN_BY_JAVASCRIPT: Final = frozenset(
    {
        "__defineGetter__",
        "__defineSetter__",
        "__lookupGetter__",
        "__lookupSetter__",
        "__proto__",
        "constructor",
        "hasOwnProperty",
        "isPrototypeOf",
        "propertyIsEnumerable",
        "toLocaleString",
        "toString",
        "valueOf",
    }
)


def shown_names(names: Sequence[str], *, limit: int) -> list[str]:
    """Shorten names for a chart.

    Args:
        names: distinct.
        limit: longest result in characters, a number at its end aside.

    Returns:
        As many distinct names; those that would look alike, or that Vega cannot use, end in
        the place where they stand.
    """
    shown = [printable(name, limit=limit) for name in names]
    taken = set(_TAKEN_BY_JAVASCRIPT)
    for at, name in enumerate(shown):
        unique, place = name, at
        while unique in taken or (unique != name and unique in shown):
            place += 1
            unique = f"{name} #{place}"
        taken.add(unique)
        shown[at] = unique
    return shown
