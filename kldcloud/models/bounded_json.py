"""JSON from strangers: how long, how deep and how much of it, decided before it is believed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kldcloud.errors import FormatError
from kldcloud.models.regular_file import DOWNLOAD_AGAIN, open_regular

_DEEPEST = 64


def read_json_object(path: Path, *, max_bytes: int, max_values: int) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: of the file.
        max_bytes: a longer file is refused before it is read.
        max_values: as `parse_json_object`.

    Raises:
        UserError: there is no such file, or it cannot be read.
        FormatError: it is longer, or as `parse_json_object`.
    """
    with open_regular(path, wanted="give the folder of a model") as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise FormatError(f"{path}: has more than {max_bytes:,} bytes", hint=DOWNLOAD_AGAIN)
    return parse_json_object(raw, str(path), max_values=max_values)


def parse_json_object(raw: bytes, name: str, *, max_values: int) -> dict[str, Any]:
    """Parse one JSON object.

    Args:
        raw: UTF-8.
        name: what messages call it.
        max_values: bound of the lists, objects and commas in it, counted before anything is made
            of them: a Python object takes far more memory than the two bytes of an empty list.

    Raises:
        FormatError: it is no JSON object, has a key twice, a number that is none, or goes beyond
            a bound.
    """
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > max_values:
        raise FormatError(f"{name}: has more than {max_values:,} values", hint=DOWNLOAD_AGAIN)
    try:
        found = json.loads(raw.decode(), object_pairs_hook=_object, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = str(error).split("\n", 1)[0][:100] if str(error) else type(error).__name__
        raise FormatError(f"{name}: is not valid JSON: {reason}", hint=DOWNLOAD_AGAIN) from None
    if not isinstance(found, dict):
        raise FormatError(f"{name}: is not a JSON object", hint=DOWNLOAD_AGAIN)
    if _is_deeper(found, _DEEPEST):
        raise FormatError(f"{name}: is nested more than {_DEEPEST} deep", hint=DOWNLOAD_AGAIN)
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"it names {twice[:80]!r} twice")
    return found


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _is_deeper(value: object, levels: int) -> bool:
    level = [value]
    for _ in range(levels):
        level = [each for container in level for each in _containers_in(container)]
        if not level:
            return False
    return True


def _containers_in(value: object) -> Iterator[object]:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (each for each in inside if isinstance(each, dict | list))
