"""report.html as a document: what it says, what it holds, and what it may load."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kldcloud.errors import FormatError
from kldcloud.report.across_corpora import macro_rows
from kldcloud.report.html import render_html
from kldcloud.report.markdown import render_markdown
from kldcloud.report.profile_shape import Profiles
from kldcloud.report.rounding import kld_with_error
from kldcloud.report.summary_file import parse_summary
from kldcloud.report.table import percent_figure
from tests.report.summaries import as_summary, rename, summary_dict
from tests.report.test_corpus_notes import floor, stop

from .documents import Node, data, read
from .realistic import (
    CORPORA,
    SIZES,
    realistic_dict,
    realistic_profiles,
    realistic_summary,
    realistic_worst,
)

HOSTILE = "</script><img src=x onerror=alert(1)><!--\u202e" + "\u05e9\u05dc\u05d5\u05dd" * 20
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def page() -> str:
    return render_html(as_summary(realistic_dict(failing=True)), realistic_profiles())


@pytest.fixture(scope="module")
def document(page: str) -> Node:
    return read(page)


def test_its_data_is_the_summary_and_the_profiles_exactly(document: Node) -> None:
    summary = as_summary(realistic_dict(failing=True))
    assert parse_summary(document.one("script", id="summary").text.encode()) == summary
    assert Profiles.model_validate(data(document, "profiles")) == realistic_profiles()


def test_the_table_has_the_cells_of_report_md(document: Node) -> None:
    text = render_markdown(as_summary(realistic_dict(failing=True)))
    published = [
        [cell.strip("` ") for cell in line.strip("| ").split(" | ")]
        for section in text.split("\n## ")
        if section.startswith("On ")
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    shown = []
    for table in document.every("table", class_="results"):
        for row in table.one("tbody").every("tr"):
            cells = [row.every("bdi")[0].text, *(cell.text for cell in row.every("td"))]
            shown.append(cells)
    assert shown == published
    assert len(shown) == len(CORPORA) * (len(SIZES) + 1)


def test_a_failed_candidate_has_a_row_that_says_so(document: Node) -> None:
    rows = document.every("tr", class_="failed")
    assert len(rows) == len(CORPORA)
    for row in rows:
        assert row.one("td", class_="instead").text == "failed"
        assert row.one("small").text == "TQ1_0.gguf: the file ends inside a tensor"
    assert "Partial run: 16 of 18 measurements are complete." in document.text


def test_every_corpus_has_a_section_with_its_plots_and_its_table(document: Node) -> None:
    for place, name in enumerate(CORPORA):
        section = document.one("section", id=f"corpus-{place}")
        assert section.one("h2").text == f"On {name}"
        assert len(section.every("table", class_="results")) == 1
        assert [figure.one("div").attributes["id"] for figure in section.every("figure")] == [
            f"{kind}-{place}"
            for kind in ("size", "distribution", "position", "confidence", "class")
        ]


def test_without_profiles_their_charts_are_left_out(document: Node) -> None:
    plain = read(render_html(realistic_summary()))
    assert plain.every("script", id="profiles") == []
    assert len(plain.every("figure")) == len(CORPORA)
    assert "Where the divergence lies" in document.text
    assert "Where the divergence lies" not in plain.text
    assert set(data(plain, "charts")["charts"]) == {"size-0", "size-1"}


def test_profiles_of_another_run_are_refused() -> None:
    with pytest.raises(FormatError, match="the profiles are of run qwen"):
        render_html(as_summary(summary_dict()), realistic_profiles())


def test_its_headings_descend_in_steps(document: Node) -> None:
    levels = [int(each.tag[1]) for each in _walk(document) if re.fullmatch("h[1-6]", each.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_tables_have_captions_and_headings_with_a_scope(document: Node) -> None:
    tables = document.every("table")
    assert len(tables) == 2 * len(CORPORA) + 3
    for table in tables:
        assert table.one("caption").text
        assert all(heading.attributes.get("scope") for heading in table.every("th"))
    for table in document.every("table", class_="results"):
        assert {each.attributes["aria-sort"] for each in table.one("thead").every("th")} == {"none"}


def test_every_chart_has_words_for_those_who_do_not_see_it(document: Node) -> None:
    charts = data(document, "charts")["charts"]
    assert len(charts) == 5 * len(CORPORA)
    for chart in charts.values():
        for layouts in chart["modes"].values():
            for drawn in layouts.values():
                assert "Q8_0" in drawn["description"]
    assert all(figure.one("figcaption").text for figure in document.every("figure"))


def test_every_field_has_a_label_and_every_button_a_name(document: Node) -> None:
    fields = document.every("input")
    assert fields
    assert sum(len(label.every("input")) for label in document.every("label")) == len(fields)
    assert all(button.text and button.attributes["type"] for button in document.every("button"))


def test_identifiers_are_there_once(document: Node) -> None:
    names = [each.attributes["id"] for each in _walk(document) if "id" in each.attributes]
    assert len(set(names)) == len(names)
    targets = {str(link.attributes["href"]).removeprefix("#") for link in document.every("a")} | {
        each.attributes[name]
        for each in _walk(document)
        for name in each.attributes
        if name in {"aria-labelledby", "data-filters", "data-mode-of", "data-draws", "data-saves"}
    }
    assert targets <= set(names)


def test_how_to_do_it_again(document: Node) -> None:
    (section,) = (each for each in document.every("section") if "How to reproduce it" in each.text)
    assert "kldcloud launch job.yaml\nkldcloud report qwen3.5-35b-a3b-2f61c09be7d4" in section.text
    shape = realistic_dict(failing=True)
    for model in (shape["base"], *shape["candidates"], *shape["corpora"]):
        assert model["sha256"] in section.text
    for words in ("0.1.0", "hidden", "llama.cpp", "kv_type_k=f16", "Qwen3.5-35B-A3B-Q8_0.gguf"):
        assert words in section.text
    assert "/models/" not in section.text


def test_a_run_that_is_no_word_is_not_put_into_a_command() -> None:
    shape = summary_dict()
    shape["run"] = "x; rm -rf ~"
    document = read(render_html(as_summary(shape)))
    assert document.one("pre").text == "kldcloud launch job.yaml\nkldcloud report RUN --format html"


# What it may load


def _policy(document: Node) -> dict[str, list[str]]:
    (meta,) = (each for each in document.every("meta") if "http-equiv" in each.attributes)
    parts = (part.split() for part in str(meta.attributes["content"]).split(";"))
    return {name: sources for name, *sources in parts}


def test_its_policy_allows_its_own_scripts_and_style_and_nothing_else(document: Node) -> None:
    policy = _policy(document)
    assert policy["default-src"] == ["'none'"]
    assert policy["img-src"] == ["data:"]
    assert set(policy) == {
        "default-src",
        "script-src",
        "style-src",
        "img-src",
        "base-uri",
        "form-action",
    }
    scripts = [each for each in document.every("script") if "type" not in each.attributes]
    assert policy["script-src"] == [_digest(each.text) for each in scripts]
    assert policy["style-src"] == [_digest(document.one("style").text)]


def _digest(code: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"


def test_it_names_no_address_to_load_from(document: Node) -> None:
    addresses = {
        value
        for each in _walk(document)
        for name, value in each.attributes.items()
        if name in {"src", "href", "srcset", "action", "data", "poster", "background"}
    }
    assert addresses == {"data:,", "#corpus-0", "#corpus-1"}
    assert "url(" not in document.one("style").text
    assert "@import" not in document.one("style").text


def test_styles_and_handlers_stand_in_no_attribute(document: Node) -> None:
    names = {name for each in _walk(document) for name in each.attributes}
    assert not {name for name in names if name.startswith("on") or name == "style"}


# Strangers' names


def _hostile() -> dict[str, Any]:
    shape = realistic_dict(failing=True)
    rename(shape, "Q8_0", HOSTILE)
    rename(shape, "TQ1_0", "y" * 300)
    rename(shape, "wikitext-2", f"corpus {HOSTILE}")
    shape["name"] = shape["run"] = shape["kldcloud"] = shape["encoding"] = HOSTILE
    shape["engine"] = {"name": HOSTILE, "version": HOSTILE, HOSTILE: HOSTILE}
    shape["base"]["name"] = shape["base"]["sha256"] = HOSTILE
    shape["candidates"][0]["file"] = f"/a/{HOSTILE}"
    shape["results"][-1]["error"] = HOSTILE
    return shape


def test_hostile_names_change_no_element_of_the_page(document: Node) -> None:
    shape = _hostile()
    profiles = realistic_profiles().to_json_dict()
    profiles["run"] = HOSTILE
    for each in profiles["profiles"]:
        each["candidate"] = HOSTILE if each["candidate"] == "Q8_0" else each["candidate"]
        each["corpus"] = f"corpus {HOSTILE}" if each["corpus"] == "wikitext-2" else each["corpus"]
    made = render_html(as_summary(shape), Profiles.model_validate(profiles))
    hostile = read(made)
    # Only the engine has fewer options here.
    skipped = {"dd", "code", "bdi"}
    assert [each.tag for each in _walk(hostile) if each.tag not in skipped] == [
        each.tag for each in _walk(document) if each.tag not in skipped
    ]
    assert "\u202e" not in made
    assert data(hostile, "summary") == as_summary(shape).to_json_dict()
    assert data(hostile, "profiles") == profiles


def test_names_from_outside_stand_in_elements_that_keep_their_direction() -> None:
    document = read(render_html(as_summary(_hostile())))
    hebrew = re.compile("[\u0590-\u05ff]")
    for each in _walk(document):
        own = "".join(part for part in each.children if isinstance(part, str))
        if hebrew.search(own):
            assert each.tag in {"bdi", "title"}


def test_nothing_measured_is_a_page_too() -> None:
    shape = summary_dict()
    shape.update(status="partial", results=[], comparisons=[])
    document = read(render_html(as_summary(shape)))
    assert "No plot: Q8_0 (not measured yet), Q4_K_M (not measured yet)." in document.text
    assert [cell.text for cell in document.every("td", class_="instead")] == [
        "not measured yet"
    ] * 2
    shape.update(candidates=[], corpora=[])
    assert read(render_html(as_summary(shape))).one("h1").text.startswith("KL divergence")


def test_fifty_worst_positions_of_each_candidate_are_in_it_exactly() -> None:
    whole = realistic_worst()
    document = read(render_html(realistic_summary(), None, whole))
    kept = data(document, "worst")
    assert kept["heat"] == [0.01, 0.1, 0.5, 1.0, 3.0]
    for one, every in zip(kept["worst"], whole.to_json_dict()["worst"], strict=True):
        assert len(every["positions"]) == 60
        assert one == {**every, "positions": every["positions"][:50]}
    for place in range(len(CORPORA)):
        section = document.one("section", id=f"corpus-{place}")
        names = [each.text for each in section.one("select").every("option")]
        assert names == list(SIZES)


def test_without_worst_positions_nothing_speaks_of_them(document: Node) -> None:
    assert document.every("script", id="worst") == []
    assert document.every("select") == []


def test_worst_positions_of_another_run_are_refused() -> None:
    with pytest.raises(FormatError, match="worst positions are of run"):
        render_html(as_summary(summary_dict()), None, realistic_worst())


def test_long_tables_can_be_searched() -> None:
    assert read(render_html(as_summary(summary_dict()))).every("input", type="search") == []
    shape = summary_dict()
    for at in range(20):
        shape["candidates"].append({**shape["candidates"][0], "name": f"more-{at}"})
    document = read(render_html(as_summary(shape)))
    assert document.one("input", type="search").attributes["data-filters"] == "table-0"


_PRINT = """
import sys
from kldcloud.report.html import render_html
from tests.report.html.realistic import realistic_profiles, realistic_summary
sys.stdout.buffer.write(render_html(realistic_summary(), realistic_profiles()).encode())
"""


def test_the_same_summary_gives_the_same_bytes_in_another_process() -> None:
    pages = [
        subprocess.run(
            [sys.executable, "-c", _PRINT],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(REPOSITORY)},
            cwd=REPOSITORY,
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert pages[0] == pages[1] == render_html(realistic_summary(), realistic_profiles()).encode()


def test_most_of_it_is_the_library(page: str, document: Node) -> None:
    library = len(document.one("script", id="library").text.encode())
    assert 700_000 < library < 1_200_000
    assert len(page.encode()) - library < 500_000
    assert json.dumps(data(document, "summary"))


def _walk(node: Node) -> list[Node]:
    found = []
    for each in node.children:
        if isinstance(each, Node):
            found += [each, *_walk(each)]
    return found


def test_over_all_texts_there_is_a_macro_average(document: Node) -> None:
    summary = as_summary(realistic_dict(failing=True))
    rows = document.one("table", class_="macro").one("tbody").every("tr")
    shown = [[cell.text for cell in row.every("td")] for row in rows]
    assert shown == [
        [kld_with_error(each.kld_mean), percent_figure(each.same_top)]
        for each in macro_rows(summary)
    ]
    assert [row.one("bdi").text for row in rows] == [each.name for each in summary.candidates]


def test_where_a_run_stopped_and_its_floor_stand_with_their_corpus() -> None:
    shape = {**summary_dict(), "stops": [stop()], "noise_floor": [floor()]}
    section = read(render_html(as_summary(shape))).one("section", id="corpus-0")
    assert (
        "stopped after 55 of 220 chunks, taken in a pseudo-random order; 75 % saved."
        in section.text
    )
    assert "the base measured against itself: mean KLD 2.0e-06" in section.text


def test_a_rank_that_depends_on_the_text_is_a_warning_up_front() -> None:
    shape = realistic_dict()
    first, second = shape["comparisons"]
    names = [rank["candidate"] for rank in first["ranks"]]
    for comparison, order in ((first, names), (second, names[::-1])):
        comparison["ranks"] = [
            {"candidate": name, "low": at, "high": at} for at, name in enumerate(order, 1)
        ]
    text = read(render_html(as_summary(shape))).text
    assert f"rank depends on the text: {names[0]} is 1 on " in text
