"""The kinds of value that only distillation jobs have, and how each refuses a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import PlainSerializer, PlainValidator

from kldcloud.errors import SpecError
from kldcloud.spec.fields import but_not, not_text, refused, share, source_uri
from kldcloud.spec.quants import FTYPES, quant_type
from kldcloud.spec.uri import SourceUri, parse_uri, shown_uri

TRAINABLE: Final = (
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q4_K_S",
    "Q4_K_M",
    "Q5_K_S",
    "Q5_K_M",
    "Q6_K",
)
"""Types of files all of whose tensors are of a type in `qad.formats.blocks.BLOCK_TYPES`."""

IMATRIX_WORDS: Final = ("auto", "none")
_MOST_LOOKS: Final = 1_000_000


def _trainable(value: object) -> str:
    if not isinstance(value, str):
        raise refused(not_text(value))
    name = value.upper()
    if name in FTYPES and name not in TRAINABLE:
        listed = ", ".join(TRAINABLE)
        raise refused(f"{name} files cannot be trained; types that can: {listed}")
    try:
        return quant_type(value)
    except SpecError as error:
        raise refused(str(error)) from None


def _imatrix(value: object) -> SourceUri | str:
    if value in IMATRIX_WORDS:
        return str(value)
    if not isinstance(value, str | SourceUri):
        raise refused(f"must be auto, none or a file{but_not(value)}")
    if (source := source_uri(value)).scheme == "builtin":
        raise refused("a built-in text is no importance matrix")
    return source


def _patience(value: object) -> int | Literal["never"]:
    if value == "never":
        return "never"
    if type(value) is int and 1 <= value <= _MOST_LOOKS:
        return value
    raise refused(f"must be never or a whole number from 1 to {_MOST_LOOKS}{but_not(value)}")


def _local_path(value: object) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise refused(not_text(value))
    try:
        place = parse_uri(value)
    except SpecError as error:
        raise refused(str(error)) from None
    if place.scheme != "file":
        raise refused(f"must be a path here, not {shown_uri(value)}")
    return Path(place.path).expanduser()


def share_up_to(most: float, *, zero: bool = True) -> PlainValidator:
    """Return the validator of a share of at most `most`, which may be 0 if `zero`."""
    bounds = f"from 0 to {most:.0%}" if zero else f"more than 0 and at most {most:.0%}"

    def validate(value: object) -> float:
        found = share(value)
        if found is None or not 0 <= found <= most or not (zero or found):
            raise refused(f"must be a share such as 10% or 0.1, {bounds}{but_not(value)}")
        return float(found)

    return PlainValidator(validate)


TrainableType = Annotated[str, PlainValidator(_trainable)]
ImatrixChoice = Annotated[
    SourceUri | Literal["auto", "none"], PlainValidator(_imatrix), PlainSerializer(str)
]
Patience = Annotated[int | Literal["never"], PlainValidator(_patience)]
LocalPath = Annotated[Path, PlainValidator(_local_path), PlainSerializer(str)]
"""A file or folder to write; relative to the current folder."""
