"""`worst.json`: canonical bytes out, and bytes in that are checked before they are believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from kldcloud.report.side_file import dump_side_file, parse_side_file
from kldcloud.report.worst_shape import WorstOfRun

SCHEMA: Final = "kldcloud.worst/1"
MAX_WORST_BYTES: Final = 256 * 2**20
_NAME: Final = "worst.json"
# Texts may hold any number of marks, but then they are as long: a position has 150 of its own.
_MOST_MARKS: Final = 32_000_000


def dump_worst(run: str, worst: Sequence[Mapping[str, Any]]) -> bytes:
    """The canonical bytes of a run's worst positions.

    Raises:
        FormatError: they have not the shape that `WorstOfRun` declares.
    """
    content = {"schema": SCHEMA, "run": run, "worst": [dict(each) for each in worst]}
    return dump_side_file(_NAME, WorstOfRun, content)


def parse_worst(data: bytes) -> WorstOfRun:
    """Read and check the bytes of a `worst.json`.

    Raises:
        FormatError: too large, not JSON, or not what it must be.
    """
    return parse_side_file(
        _NAME, WorstOfRun, data, most_bytes=MAX_WORST_BYTES, most_marks=_MOST_MARKS
    )
