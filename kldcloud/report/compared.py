"""Candidates of several runs in one table, as `kldcloud compare` shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rich.console import Console

from kldcloud.errors import UserError
from kldcloud.report.csv_table import render_csv
from kldcloud.report.escaping import printable
from kldcloud.report.markdown import render_markdown
from kldcloud.report.summary_shape import Summary
from kldcloud.report.terminal import print_prose, print_table

FORMATS: Final = ("md", "csv", "json")
SCHEMA: Final = "kldcloud.compared/1"


@dataclass(frozen=True, slots=True)
class ComparedRuns:
    """What several runs come to together.

    Attributes:
        runs: their ids, in the order in which they were named.
        origins: candidate -> the run that it is from.
        summary: all of their candidates, as if one run had measured them.
    """

    runs: tuple[str, ...]
    origins: Mapping[str, str]
    summary: Summary


def print_compared(compared: ComparedRuns, console: Console) -> None:
    """Print the table of a run, of all candidates, and which run each is from."""
    print_table(compared.summary, console)
    for run in compared.runs:
        names = [name for name, origin in compared.origins.items() if origin == run]
        said = ", ".join(printable(name, limit=48) for name in names) or "no others"
        print_prose(f"Of {printable(run)}: {said}.", console, style="dim")


def render_compared(compared: ComparedRuns, format: str) -> str:  # noqa: A002 -- what people type
    """Render in one of `FORMATS`; the text ends in a newline.

    The JSON has the fields of summary.json, with `runs` in place of `run`, `name` and `status`, and
    each candidate's own `run`.

    Raises:
        UserError: an unknown format.
    """
    check_format(format)
    if format == "md":
        return render_markdown(compared.summary, compared.origins)
    if format == "csv":
        return render_csv(compared.summary, compared.origins)
    return _json(compared)


def check_format(format: str) -> None:  # noqa: A002 -- what people type
    """Refuse a format before anything is read for it.

    Raises:
        UserError: an unknown format.
    """
    if format not in FORMATS:
        raise UserError(
            f'no format "{printable(format, limit=40)}" for a comparison',
            hint=f"choose one of {', '.join(FORMATS)}",
        )


def _json(compared: ComparedRuns) -> str:
    facts = compared.summary.to_json_dict()
    for field in ("run", "name", "status"):
        del facts[field]
    candidates = [{**each, "run": compared.origins[each["name"]]} for each in facts["candidates"]]
    facts |= {"schema": SCHEMA, "candidates": candidates}
    facts = {"schema": facts.pop("schema"), "runs": list(compared.runs), **facts}
    return json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
