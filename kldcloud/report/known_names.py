"""Refusing a name that a run does not have, with those that it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kldcloud.errors import UserError
from kldcloud.report.escaping import printable

_MOST_NAMED: Final = 20
_NAME_SHOWN: Final = 80


def check_known(kind: str, name: str, known: Sequence[str]) -> None:
    """Let a name pass that is known.

    Args:
        kind: what it is a name of, such as "candidate".
        name: as a person typed it.
        known: the names that there are.

    Raises:
        UserError: it is none of them.
    """
    if name in known:
        return
    names = ", ".join(printable(each, limit=_NAME_SHOWN) for each in known[:_MOST_NAMED])
    raise UserError(
        f'no {kind} "{printable(name, limit=_NAME_SHOWN)}" in this run',
        hint=f"it has: {names or 'none'}",
    )
