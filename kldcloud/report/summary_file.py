"""`summary.json`: canonical bytes out, and bytes in that are checked before they are believed."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, Final

from pydantic import ValidationError

from kldcloud.errors import FormatError
from kldcloud.report.escaping import printable
from kldcloud.report.summary_shape import Summary

__all__ = ["MAX_SUMMARY_BYTES", "SCHEMA", "Summary", "dump_summary", "parse_summary"]

SCHEMA: Final = "kldcloud.summary/2"
_READ: Final = ("kldcloud.summary/1", SCHEMA)
MAX_SUMMARY_BYTES: Final = 64 * 2**20

# The first version is 1, so any other number is from the future.
_NUMBERED_SCHEMA: Final = re.compile(r"kldcloud\.summary/[1-9][0-9]*")
# 64 MiB of brackets would parse into gigabytes; a result has about 500 of these marks.
_MARKS: Final = (b",", b":", b"[", b"{")
_MOST_MARKS: Final = 4_000_000
_MOST_KEYS: Final = 1000
# Tables hold every candidate on every corpus, measured or not.
_MOST_PAIRS: Final = 100_000
_LONGEST_FIELD: Final = 160


def parse_summary(data: bytes) -> Summary:
    """Read and check the bytes of a `summary.json`.

    Args:
        data: UTF-8 JSON, at most 64 MiB.

    Raises:
        FormatError: too large, not JSON, another schema, or a field that is not what it must be.
    """
    if len(data) > MAX_SUMMARY_BYTES:
        raise FormatError(
            f"summary.json: {len(data):,} bytes, more than the {MAX_SUMMARY_BYTES:,} that one needs"
        )
    if sum(map(data.count, _MARKS)) > _MOST_MARKS:
        raise FormatError("summary.json: more values than any run has")
    plain = _plain(data)
    _check_schema(plain)
    try:
        # Not model_validate_json: its errors hold a copy of the whole file each.
        summary = Summary.model_validate(plain)
    except ValidationError as error:
        raise FormatError(f"summary.json: {_first_problem(error)}") from None
    _check_references(summary)
    return summary


def dump_summary(summary: Mapping[str, Any]) -> bytes:
    """Write the canonical bytes of a summary: equal summaries give equal bytes.

    Keys stand in declared order whatever order they came in; numbers that are not finite become
    null; text is UTF-8 and unescaped, indented by two, with one newline at the end.

    Args:
        summary: the shape that `Summary` declares, as plain values.

    Raises:
        FormatError: a field is missing, unknown or of the wrong kind.
    """
    try:
        plain = json.dumps(_without_nan(summary), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"summary.json: cannot be written as JSON: {error}") from None
    checked = parse_summary(plain).to_json_dict()
    text = json.dumps(checked, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Each surplus key would cost an error of its own later, and of two equal keys one would win.
    if len(pairs) > _MOST_KEYS:
        raise FormatError(f"summary.json: an object of {len(pairs):,} fields")
    plain = dict(pairs)
    if len(plain) != len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise FormatError(f"summary.json: field {_quoted(repeated)} stands twice in one object")
    return plain


def _plain(data: bytes) -> object:
    try:
        return json.loads(data.decode(), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        problem = printable(str(error), limit=_LONGEST_FIELD)
        raise FormatError(f"summary.json: not JSON: {problem}") from None


def _check_schema(plain: object) -> None:
    schema = plain.get("schema") if isinstance(plain, dict) else None
    if not isinstance(schema, str):
        raise FormatError('summary.json: no "schema" field, so not a summary of kldcloud')
    if schema in _READ:
        return
    shown = printable(schema, limit=_LONGEST_FIELD)
    if _NUMBERED_SCHEMA.fullmatch(schema):
        raise FormatError(
            f"summary.json: schema {shown} is newer than this kldcloud, which reads {SCHEMA}",
            hint="upgrade with: pip install --upgrade kldcloud",
        )
    raise FormatError(f"summary.json: schema {shown} is not {SCHEMA}")


def _first_problem(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False)
    first = problems[0]
    path = "".join(f"[{at}]" if isinstance(at, int) else f".{at}" for at in first["loc"])
    field = printable(path.removeprefix("."), limit=_LONGEST_FIELD)
    what = {
        "missing": "is missing",
        "extra_forbidden": "is a field that this version does not know",
    }.get(first["type"], printable(first["msg"], limit=_LONGEST_FIELD))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{field}: {what}{more}" if field else f"{what}{more}"


def _check_references(summary: Summary) -> None:
    candidates = _distinct("candidates", [candidate.name for candidate in summary.candidates])
    corpora = _distinct("corpora", [corpus.name for corpus in summary.corpora])
    if len(candidates) * len(corpora) > _MOST_PAIRS:
        raise FormatError(
            f"summary.json: {len(candidates):,} candidates on {len(corpora):,} corpora"
        )
    seen = set()
    for at, measurement in enumerate(summary.results):
        pair = (measurement.candidate, measurement.corpus)
        if pair[0] not in candidates:
            problem = f"names an unknown candidate, {_quoted(pair[0])}"
        elif pair[1] not in corpora:
            problem = f"names an unknown corpus, {_quoted(pair[1])}"
        elif pair in seen:
            problem = f"repeats {_quoted(pair[0])} on {_quoted(pair[1])}"
        elif (measurement.status == "complete") != (measurement.result is not None):
            problem = f"is {measurement.status}, which its result contradicts"
        else:
            seen.add(pair)
            continue
        raise FormatError(f"summary.json: results[{at}] {problem}")
    _check_comparisons(summary, candidates, corpora)


def _check_comparisons(
    summary: Summary, candidates: frozenset[str], corpora: frozenset[str]
) -> None:
    floors = _distinct("noise_floor", [floor.corpus for floor in summary.noise_floor])
    compared = _distinct("comparisons", [each.corpus for each in summary.comparisons])
    stopped = _distinct("stops", [each.corpus for each in summary.stops])
    for field, names in (("noise_floor", floors), ("comparisons", compared), ("stops", stopped)):
        _refuse_unknown(field, "corpus", names - corpora)
    for at, stop in enumerate(summary.stops):
        named = {each.candidate for each in stop.means}.union(stop.order, *stop.undecided)
        _refuse_unknown(f"stops[{at}]", "candidate", named - candidates)
    for at, comparison in enumerate(summary.comparisons):
        field = f"comparisons[{at}]"
        ranked = _distinct(f"{field}.ranks", [rank.candidate for rank in comparison.ranks])
        paired = ranked.union(*((pair.better, pair.worse) for pair in comparison.pairs))
        _refuse_unknown(field, "candidate", paired - candidates)


def _refuse_unknown(field: str, kind: str, unknown: Collection[str]) -> None:
    if unknown:
        raise FormatError(f"summary.json: {field} names an unknown {kind}, {_quoted(min(unknown))}")


def _distinct(field: str, names: list[str]) -> frozenset[str]:
    for name, times in Counter(names).most_common(1):
        if times > 1:
            raise FormatError(f"summary.json: {field} names {_quoted(name)} twice")
    return frozenset(names)


def _quoted(name: str) -> str:
    return f'"{printable(name, limit=_LONGEST_FIELD)}"'


def _without_nan(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
