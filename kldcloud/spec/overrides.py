"""`--set key=value`: one value of a job file replaced from the command line."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Final

from kldcloud.errors import SpecError
from kldcloud.spec.refusal import dotted
from kldcloud.spec.yaml_tree import MAX_BYTES, Located, Origin, Step, parse_tree

LABEL: Final = "--set"
_STEP: Final = re.compile(r"(?P<key>[A-Za-z_][A-Za-z0-9_-]{0,63})(?P<indices>(?:\[[0-9]{1,6}\])*)")
_LONGEST_WAY: Final = 32


def apply_override(tree: Located, override: str) -> None:
    """Put the value of one `corpora[0].chunks=4` into the tree of a job file.

    The value is YAML. An index one past the end of a list adds an entry. Sections that the file
    leaves out are made; whether the keys are known is for the job's model to say.

    Raises:
        SpecError: not key=value, not YAML, or a way through something that is not there.
    """
    key, equals, text = override.partition("=")
    if not equals or len(override) > MAX_BYTES:
        raise SpecError(f"{LABEL}: {override[:60]!r}: write key=value, such as engine.threads=4")
    way = _parse_way(key.strip())
    field = dotted(way)
    origin = Origin(LABEL, Path.cwd(), has_lines=False)
    try:
        value = parse_tree(text, origin)
    except SpecError as error:
        reason = error.message.removeprefix(f"{LABEL}: ")
        raise SpecError(f"{LABEL}: {field}: {reason}") from None
    at = tree
    for depth, (step, following) in enumerate(pairwise(way), start=1):
        empty: dict[str, Located] | list[Located] = {} if isinstance(following, str) else []
        at = _step_into(at, step, Located(empty, origin, 1), dotted(way[:depth]))
    _put(at, way[-1], value, field)


def _parse_way(key: str) -> tuple[Step, ...]:
    way: list[Step] = []
    for part in key.split("."):
        found = _STEP.fullmatch(part)
        if found is None or len(way) > _LONGEST_WAY:
            raise SpecError(f"{LABEL}: {key[:60]!r}: write keys such as corpora[0].chunks")
        way.append(found["key"])
        way.extend(int(index) for index in re.findall(r"[0-9]+", found["indices"]))
    return tuple(way)


def _step_into(at: Located, step: Step, empty: Located, field: str) -> Located:
    if isinstance(step, str) and isinstance(at.value, dict):
        present = at.value.get(step)
        if present is None or present.value is None:
            at.value[step] = present = empty
        return present
    if isinstance(step, int) and isinstance(at.value, list) and step < len(at.value):
        return at.value[step]
    _put(at, step, empty, field)
    return empty


def _put(at: Located, step: Step, value: Located, field: str) -> None:
    if isinstance(step, str) and isinstance(at.value, dict):
        at.value[step] = value
    elif isinstance(step, int) and isinstance(at.value, list):
        if step > len(at.value):
            count = len(at.value)
            raise SpecError(f"{LABEL}: {field}: the list has {count}; [{count}] would add one")
        at.value[step : step + 1] = [value]
    else:
        wanted = "a mapping" if isinstance(step, str) else "a list"
        raise SpecError(f"{LABEL}: {field}: what it is part of is not {wanted}")
