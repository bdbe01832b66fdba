"""What a report says of a distillation: bounded, and the same in every rendering."""

from __future__ import annotations

from pathlib import Path

import pytest

from kldcloud.qad.looks import Look
from kldcloud.qad.result_file import QadResult, read_result
from kldcloud.report.html import render_html
from kldcloud.report.markdown import render_markdown
from kldcloud.report.training_text import look_rows, training_sentences
from kldcloud.store import open_store
from tests.report.html.documents import read
from tests.report.summaries import as_summary, summary_dict
from tests.status.kept_qads import KeptQad

SUMMARY = as_summary(summary_dict())


@pytest.fixture
def kept(tmp_path: Path) -> KeptQad:
    return KeptQad(open_store(str(tmp_path / "store")))


@pytest.fixture
def result(kept: KeptQad) -> QadResult:
    return kept.result(looks=tuple(Look(5 * at, 0.5 - 0.1 * (at == 3), 0.75) for at in range(900)))


def test_a_result_that_was_written_comes_back(kept: KeptQad, result: QadResult) -> None:
    assert read_result(kept.store, f"qad/{kept.run}") == result


def test_of_many_looks_some_are_shown_among_them_the_first_the_last_and_the_best(
    result: QadResult,
) -> None:
    rows = look_rows(result)
    assert len(rows) == 21
    assert rows[0] == ("0", "0.500000", "75.00")
    assert rows[1] == ("15", "0.400000", "75.00")
    assert rows[-1] == ("4,495", "0.500000", "75.00")


def test_its_file_is_that_of_its_best_look(result: QadResult) -> None:
    first, *_ = training_sentences(result, str)
    assert first == (
        "Q4_0-imat-qad is Q4_0-imat after 10 steps of distillation from teacher, 10,240 tokens;"
        " its file is that of step 15."
    )


def test_page_and_markdown_have_the_rows_and_are_as_they_were_without_them(
    result: QadResult,
) -> None:
    page, text = render_html(SUMMARY, training=result), render_markdown(SUMMARY, training=result)
    table = read(page).one("table", class_="looks")
    cells = [each.text for each in table.every("td")]
    rows = look_rows(result)
    assert cells == [cell for row in rows for cell in row]
    assert all(f"\n| {' | '.join(row)} |\n" in text for row in rows)
    assert 'id="training"' not in render_html(SUMMARY)
    assert "## Training" not in render_markdown(SUMMARY)
