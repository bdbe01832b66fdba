"""Files beside summary.json: canonical bytes out, and bytes in that are checked before use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from kldcloud.errors import FormatError
from kldcloud.report.escaping import printable

_MARKS: Final = (b",", b":", b"[", b"{")
_LONGEST_FIELD: Final = 160

Shape = TypeVar("Shape", bound=BaseModel)


def dump_side_file(name: str, shape: type[Shape], content: Mapping[str, Any]) -> bytes:
    """The canonical bytes of a file.

    Raises:
        FormatError: the content has not the shape that is declared.
    """
    try:
        checked = shape.model_validate(dict(content))
    except ValidationError as error:
        raise FormatError(f"{name}: {error.errors()[0]['msg']}") from None
    plain = checked.model_dump(mode="json", by_alias=True)
    return f"{json.dumps(plain, ensure_ascii=False, allow_nan=False)}\n".encode()


def parse_side_file(
    name: str, shape: type[Shape], data: bytes, *, most_bytes: int, most_marks: int
) -> Shape:
    """Read and check the bytes of a file.

    Args:
        name: what errors call it.
        shape: what it must be.
        data: all of it.
        most_bytes: a larger one is refused.
        most_marks: one with more values is refused before it is parsed.

    Raises:
        FormatError: too large, not JSON, or not what it must be.
    """
    if len(data) > most_bytes or sum(map(data.count, _MARKS)) > most_marks:
        raise FormatError(f"{name}: more than any run has")
    try:
        return shape.model_validate(json.loads(data.decode()))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = printable(".".join(map(str, first["loc"])), limit=_LONGEST_FIELD)
        raise FormatError(f"{name}: {field}: {first['type']}") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name}: not JSON") from error
