"""`profile.json`: canonical bytes out, and bytes in that are checked before they are believed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError

from kldcloud.errors import FormatError
from kldcloud.report.escaping import printable
from kldcloud.report.profile_shape import Profiles

SCHEMA: Final = "kldcloud.profile/1"
MAX_PROFILE_BYTES: Final = 64 * 2**20
_MARKS: Final = (b",", b":", b"[", b"{")
_MOST_MARKS: Final = 4_000_000
_LONGEST_FIELD: Final = 160


def dump_profiles(run: str, profiles: Sequence[Mapping[str, Any]]) -> bytes:
    """The canonical bytes of a run's profiles.

    Raises:
        FormatError: they have not the shape that `Profiles` declares.
    """
    try:
        checked = Profiles.model_validate(
            {"schema": SCHEMA, "run": run, "profiles": [dict(each) for each in profiles]}
        )
    except ValidationError as error:
        raise FormatError(f"profile.json: {error.errors()[0]['msg']}") from None
    return f"{json.dumps(checked.to_json_dict(), ensure_ascii=False, allow_nan=False)}\n".encode()


def parse_profiles(data: bytes) -> Profiles:
    """Read and check the bytes of a `profile.json`.

    Raises:
        FormatError: too large, not JSON, or not what it must be.
    """
    if len(data) > MAX_PROFILE_BYTES or sum(map(data.count, _MARKS)) > _MOST_MARKS:
        raise FormatError("profile.json: more than any run has")
    try:
        return Profiles.model_validate(json.loads(data.decode()))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = printable(".".join(map(str, first["loc"])), limit=_LONGEST_FIELD)
        raise FormatError(f"profile.json: {field}: {first['type']}") from None
    except (ValueError, RecursionError) as error:
        raise FormatError("profile.json: not JSON") from error
