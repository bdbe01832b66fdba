"""`profile.json`: canonical bytes out, and bytes in that are checked before they are believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from kldcloud.report.profile_shape import Profiles
from kldcloud.report.side_file import dump_side_file, parse_side_file

SCHEMA: Final = "kldcloud.profile/2"
MAX_PROFILE_BYTES: Final = 64 * 2**20
_NAME: Final = "profile.json"
_MOST_MARKS: Final = 4_000_000


def dump_profiles(run: str, profiles: Sequence[Mapping[str, Any]]) -> bytes:
    """The canonical bytes of a run's profiles.

    Raises:
        FormatError: they have not the shape that `Profiles` declares.
    """
    content = {"schema": SCHEMA, "run": run, "profiles": [dict(each) for each in profiles]}
    return dump_side_file(_NAME, Profiles, content)


def parse_profiles(data: bytes) -> Profiles:
    """Read and check the bytes of a `profile.json`.

    Raises:
        FormatError: too large, not JSON, or not what it must be.
    """
    return parse_side_file(
        _NAME, Profiles, data, most_bytes=MAX_PROFILE_BYTES, most_marks=_MOST_MARKS
    )
