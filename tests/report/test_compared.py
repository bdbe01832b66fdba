"""Several runs in one table: every candidate's run stays beside it, in every form."""

from __future__ import annotations

import csv
import io
import json
import re
from types import MappingProxyType

import pytest
from rich.console import Console

from kldcloud.errors import UserError
from kldcloud.report.compared import FORMATS, ComparedRuns, print_compared, render_compared

from .compared import compared_run
from .summaries import as_summary, rename

FIRST, SECOND = "ours-0123456789ab", "theirs-ba9876543210"


def both(name: str = "UD-Q4") -> ComparedRuns:
    shape = compared_run({"text": {"Q8_0": 0.001, "Q4_K_M": 0.05, "UD-Q4": 0.05}})
    rename(shape, "UD-Q4", name)
    shape["run"] = "2 runs"
    origins = {"Q8_0": FIRST, "Q4_K_M": FIRST, name: SECOND}
    return ComparedRuns((FIRST, SECOND), MappingProxyType(origins), as_summary(shape))


def printed(compared: ComparedRuns) -> str:
    out = io.StringIO()
    print_compared(compared, Console(file=out, width=110, color_system=None))
    return out.getvalue()


def test_the_table_ends_in_where_each_candidate_is_from() -> None:
    text = printed(both())
    assert re.search(r"^Q8_0 +1 .*\nQ4_K_M +2-3 .*\nUD-Q4 +2-3 ", text, re.MULTILINE)
    assert "\nNot distinguishable on text: " in text
    assert text.endswith(f"\nOf {FIRST}: Q8_0, Q4_K_M.\nOf {SECOND}: UD-Q4.\n")


def test_csv_has_each_candidates_own_run() -> None:
    rows = list(csv.DictReader(io.StringIO(render_compared(both(), "csv"))))
    assert [(row["candidate"], row["run"]) for row in rows] == [
        ("Q8_0", FIRST),
        ("Q4_K_M", FIRST),
        ("UD-Q4", SECOND),
    ]


def test_markdown_lists_all_runs_and_each_candidates_own() -> None:
    page = render_compared(both(), "md")
    assert f"\n- runs: `{FIRST}`, `{SECOND}`, kldcloud `0.1.0`" in page
    assert f", run `{FIRST}`\n- candidate: `UD-Q4`, " in page
    assert "2 runs" not in page


def test_json_is_a_schema_of_its_own() -> None:
    compared = both()
    found = json.loads(render_compared(compared, "json"))
    assert list(found)[:2] == ["schema", "runs"]
    assert (found["schema"], found["runs"]) == ("kldcloud.compared/1", [FIRST, SECOND])
    assert {each["name"]: each["run"] for each in found["candidates"]} == dict(compared.origins)
    summary = compared.summary.to_json_dict()
    assert found["comparisons"] == summary["comparisons"]
    assert found["results"] == summary["results"]
    assert not {"run", "name", "status"} & set(found)


def test_a_hostile_name_stays_text() -> None:
    compared = both("\x1b]0;owned\x07\n`x`|")
    for text in (printed(compared), *(render_compared(compared, each) for each in FORMATS[:2])):
        assert "\x1b" not in text
        assert "\x07" not in text
    assert render_compared(compared, "csv").count("\n") == 4


def test_another_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError) as caught:
        render_compared(both(), "llama")
    assert str(caught.value) == 'no format "llama" for a comparison; choose one of md, csv, json'
