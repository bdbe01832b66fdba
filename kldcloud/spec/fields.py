"""The kinds of value that job and cluster files are made of, and how each refuses a wrong one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from kldcloud.errors import SpecError
from kldcloud.spec.quants import quant_type_or_recipe
from kldcloud.spec.uri import SourceUri, check_store, no_hub_file, parse_uri, shown_uri

Parsed = TypeVar("Parsed")

REFUSED: Final = "kldcloud"
"""The pydantic error type of a refusal whose sentence is ours; `refusal.py` prints it as it is."""

_SLUG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_LONGEST_SLUG: Final = 128
_SIZE: Final = re.compile(r"(?P<number>[0-9]{1,18}(?:\.[0-9]{1,9})?) ?(?P<unit>[A-Za-z]+)")
_UNITS: Final = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
_TOKENS: Final = re.compile(r"(?P<number>[0-9]{1,18}(?:\.[0-9]{1,9})?) ?(?P<unit>[kKMB]?)")
_THOUSANDS: Final = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}
_MOST_TOKENS: Final = 1 << 40
_PERCENT: Final = re.compile(r"(?P<number>[0-9]{1,3}(?:\.[0-9]{1,9})?) ?%")
_DURATION: Final = re.compile(r"(?P<number>[0-9]{1,9}(?:\.[0-9]{1,3})?) ?(?P<unit>[smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_DURATION: Final = 366 * 86400
_MOST_CHUNKS: Final = (1 << 31) - 1  # llama.cpp counts chunks in an int32
_MOST_WORKERS: Final = 4096


class SpecModel(BaseModel):
    """A mapping in a file: unknown keys refused, nothing changes after it is read.

    A key with nothing after it counts as not given, so that a section may be commented out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, data: Any) -> Any:  # noqa: ANN401 - pydantic hands over what was given
        if not isinstance(data, Mapping):
            return data
        return {
            key: value
            for key, value in data.items()
            if value is not None or key not in cls.model_fields
        }


def refused(reason: str, *at: str | int) -> PydanticCustomError:
    """Return the error to raise inside a validator.

    Args:
        reason: what is wrong and what to do, in one line.
        at: the rest of the way to the field, where a validator sees more than one.
    """
    return PydanticCustomError(REFUSED, "{reason}", {"reason": reason, "at": at})


def slug(text: str) -> str:
    """Return `text` with whatever an object key should not hold replaced by '-'; may be empty."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-").rstrip("-")[:_LONGEST_SLUG]


def name_after(source: SourceUri, convert: str | None) -> str:
    """Return what a model is called after its file, and after the type it is converted to."""
    stem = slug(source.stem)
    return f"{stem}-{convert}" if stem and convert else stem


def _text(parse: Callable[[str], Parsed]) -> PlainValidator:
    """Return the validator that takes text only and refuses with the sentence of `parse`."""

    def validate(value: object) -> Parsed:
        if not isinstance(value, str):
            raise refused(not_text(value))
        try:
            return parse(value)
        except SpecError as error:
            raise refused(str(error)) from None

    return PlainValidator(validate)


def source_uri(value: object) -> SourceUri:
    """Return the place of a file, from text or parsed already; refuses a whole repository."""
    source = model_place(value)
    if source.is_repository:
        raise refused(str(no_hub_file(str(source))))
    return source


def model_place(value: object) -> SourceUri:
    """Return the place that text names; a parsed one comes back as it is."""
    if isinstance(value, SourceUri):
        return value
    if not isinstance(value, str):
        raise refused(not_text(value))
    try:
        return parse_uri(value)
    except SpecError as error:
        raise refused(str(error)) from None


def model_source(value: object) -> SourceUri:
    """Return the place of a model file, from text or parsed already; refuses what holds none."""
    source = source_uri(value)
    if source.scheme == "builtin":
        raise refused("a built-in text is not a model")
    return source


def any_model(value: object) -> SourceUri:
    """As `model_source`, for what may be a folder or a repository as well."""
    source = model_place(value)
    return source if source.is_repository else model_source(source)


def not_text(value: object) -> str:
    """Return why a value that YAML did not read as text is refused, and how to mend that."""
    if isinstance(value, bool | int | float):
        return f"must be text{but_not(value)}; put it in quotes"
    return "must be text"


def but_not(value: object) -> str:
    """Return ", not <value>" for the end of a refusal; empty where showing it says nothing.

    What looks like an address is shown without its user:password part and query.
    """
    if isinstance(value, bool):
        return f", not {str(value).lower()}"
    if isinstance(value, str):
        return f", not {shown_uri(value)}"
    if isinstance(value, int | float):
        return f", not {value}"
    return ""


def _name(text: str) -> str:
    if not _SLUG.fullmatch(text):
        raise SpecError(
            f"{text[:40]!r} cannot name a folder in a store",
            hint="use letters, digits, '.', '_' and '-', a letter or digit first, 128 at most",
        )
    return text


def _count_or(word: Literal["all", "auto"], most: int) -> PlainValidator:
    def validate(value: object) -> int | str:
        if value == word or (type(value) is int and 1 <= value <= most):
            return value
        raise refused(f"must be {word} or a whole number from 1 to {most}{but_not(value)}")

    return PlainValidator(validate)


def _bytes(value: object) -> int:
    if type(value) is int and value > 0:
        return value
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    factor = _UNITS.get(found["unit"], 0) if found else 0
    size = round(float(found["number"]) * factor) if found else 0
    if size < 1:
        raise refused(f"must be a size such as 4GiB or 512MiB{but_not(value)}")
    return size


def _tokens(value: object) -> int | Literal["all"]:
    if value == "all":
        return "all"
    found = _TOKENS.fullmatch(value) if isinstance(value, str) else None
    # In decimals, so that 0.7k is 700 and not a little less.
    count = Decimal(found["number"]) * _THOUSANDS[found["unit"]] if found else Decimal(0)
    if type(value) is int:
        count = Decimal(value)
    if not 1 <= count <= _MOST_TOKENS or count % 1:
        raise refused(f"must be all or a number of tokens such as 20k, 5M or 1B{but_not(value)}")
    return int(count)


def _not_a_switch(value: object) -> object:
    if isinstance(value, bool):  # which pydantic takes for 0 or 1
        raise refused(f"must be a number{but_not(value)}")
    return value


def share(value: object) -> float | None:
    """Return the number that `2%` or 0.02 means, of any size; None of anything else."""
    if isinstance(value, int | float):
        return None if isinstance(value, bool) else value
    found = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    # In decimals, so that 0.7% is the number that 0.007 is.
    return float(Decimal(found["number"]) / 100) if found else None


def _duration(value: object) -> int:
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    seconds = round(float(found["number"]) * _SECONDS[found["unit"]]) if found else 0
    if type(value) is int:  # what a model that was dumped holds
        seconds = value
    if not 1 <= seconds <= _LONGEST_DURATION:
        raise refused(f"must be a time such as 90m, 12h or 2d, of a year at most{but_not(value)}")
    return seconds


def _switch_word(value: object) -> object:
    """Undo YAML 1.1, which reads the words on and off as booleans."""
    return ("on" if value else "off") if isinstance(value, bool) else value


Name = Annotated[str, _text(_name)]
Source = Annotated[SourceUri, PlainValidator(source_uri), PlainSerializer(str)]
ModelPlace = Annotated[SourceUri, PlainValidator(model_place), PlainSerializer(str)]
"""Of a file, a folder or a repository."""
ModelSource = Annotated[SourceUri, PlainValidator(model_source), PlainSerializer(str)]
AnyModel = Annotated[SourceUri, PlainValidator(any_model), PlainSerializer(str)]
"""As `ModelPlace`, and no built-in text."""
StoreAddress = Annotated[str, _text(check_store)]
QuantType = Annotated[str, _text(quant_type_or_recipe)]
Chunks = Annotated[int | Literal["all"], _count_or("all", _MOST_CHUNKS)]
WorkerCount = Annotated[int | Literal["auto"], _count_or("auto", _MOST_WORKERS)]
ByteCount = Annotated[int, PlainValidator(_bytes)]
Duration = Annotated[int, PlainValidator(_duration)]
"""Seconds."""
TokenCount = Annotated[int | Literal["all"], PlainValidator(_tokens)]
Real = Annotated[float, BeforeValidator(_not_a_switch)]
Whole = Annotated[int, Field(strict=True)]
Switch = Annotated[bool, Field(strict=True)]
OnOff = BeforeValidator(_switch_word)
