"""pydantic's findings -> one line: file, line, dotted field, what is wrong, the nearest key."""

from __future__ import annotations

import re
import typing
from collections.abc import Sequence
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kldcloud.errors import SpecError
from kldcloud.spec.fields import REFUSED, but_not, not_text
from kldcloud.spec.nearest import did_you_mean, nearest
from kldcloud.spec.yaml_tree import Located, Step, place_of

_PLAIN_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAPPING: Final = "must be a mapping (indented 'key: value' lines)"
_SENTENCES: Final = {
    "missing": "is missing",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "model_type": _MAPPING,
    "mapping_type": _MAPPING,
    "tuple_type": "must be a list (lines that begin with '- ')",
    "too_long": "has more than {max_length} entries",
    "string_too_short": "is empty",
    "string_too_long": "is longer than {max_length} characters",
}
_SHOW_THE_VALUE: Final = {
    "int_type",
    "float_type",
    "float_parsing",
    "bool_type",
    "greater_than",
    "greater_than_equal",
    "less_than_equal",
}


def dotted(way: Sequence[Step]) -> str:
    """Return `candidates[1].quantize` for ("candidates", 1, "quantize"); odd keys are quoted."""
    text = ""
    for step in way:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _PLAIN_KEY.fullmatch(step):
            text += f".{step}" if text else step
        else:
            text += f"[{step[:64]!r}]"
    return text


def refusal(error: ValidationError, model: type[BaseModel], tree: Located) -> SpecError:
    """Return the one line for the finding that is most likely the cause of the others.

    Unknown keys go before the rest: a key that is misspelt is also a key that is missing.
    """
    findings = error.errors(include_url=False, include_context=True)
    unknown = [each for each in findings if each["type"] == "extra_forbidden"]
    first = (unknown or findings)[0]
    way = _way(first)
    field = dotted(way)
    reason = _reason(first, model)
    line = f"{place_of(tree, way)}: {field}: {reason}" if field else f"{tree.place}: {reason}"
    return SpecError(" ".join(line.splitlines()))


def _way(finding: ErrorDetails) -> tuple[Step, ...]:
    way = finding["loc"]
    if finding["type"] == REFUSED:
        way = (*way, *finding["ctx"]["at"])
    return way


def _reason(finding: ErrorDetails, model: type[BaseModel]) -> str:
    context: dict[str, Any] = finding.get("ctx", {})
    kind, value = finding["type"], finding["input"]
    if kind == REFUSED:
        return str(context["reason"])
    if kind == "extra_forbidden":
        return _unknown_key(finding["loc"], model)
    if kind == "literal_error":
        return _not_a_choice(str(context["expected"]), value)
    if kind == "string_type":
        return not_text(value)
    if kind in _SENTENCES:
        sentence = _SENTENCES[kind].format_map(context)
        return sentence + (but_not(value) if kind in _SHOW_THE_VALUE else "")
    return finding["msg"]


def _unknown_key(way: tuple[Step, ...], model: type[BaseModel]) -> str:
    key, known = str(way[-1]), list(_model_at(model, way[:-1]).model_fields)
    return f"unknown key; {did_you_mean(key, known, kind='known keys')}"


def _not_a_choice(expected: str, value: object) -> str:
    choices = re.findall(r"'([^']*)'", expected)
    match = nearest(value, choices) if isinstance(value, str) else None
    ending = f"; did you mean '{match}'?" if match else ""
    listed = f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    return f"must be {listed}{but_not(value)}{ending}"


def _model_at(model: type[BaseModel], way: tuple[Step, ...]) -> type[BaseModel]:
    """Return the model that describes the mapping at the end of `way`."""
    for step in way:
        if isinstance(step, str):
            found = _model_in(model.model_fields[step].annotation)
            model = found or model
    return model


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in typing.get_args(annotation):
        if found := _model_in(part):
            return found
    return None
