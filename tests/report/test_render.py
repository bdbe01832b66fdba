"""`render`: formats by name, and a clear answer to any other."""

from __future__ import annotations

import pytest

from kldcloud.errors import UserError
from kldcloud.report.html import FIGURE_FORMATS
from kldcloud.report.render import FORMATS, render
from kldcloud.report.summary_file import dump_summary

from .summaries import as_summary, summary_dict


@pytest.mark.parametrize(
    ("report_format", "start"),
    [
        ("md", "# KL divergence: "),
        ("json", '{\n  "schema": "kldcloud.summary/2"'),
        ("csv", "run,corpus,"),
        ("llama", "Q8_0 on pydoc:\n"),
        ("reddit", "**smollm2-requantised: "),
        ("hf-card", "---\nmodel-index:\n"),
        ("html", "<!DOCTYPE html>\n"),
    ],
)
def test_each_format_is_text_that_ends_in_a_newline(report_format: str, start: str) -> None:
    text = render(as_summary(summary_dict()), report_format)
    assert text.startswith(start)
    assert text.endswith("\n")
    assert report_format in FORMATS


def test_json_is_the_canonical_file() -> None:
    text = render(as_summary(summary_dict()), format="json")
    assert text.encode() == dump_summary(summary_dict())


def test_an_unknown_format_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError) as caught:
        render(as_summary(summary_dict()), "html\x1b")
    assert str(caught.value) == (
        f'no report format "html\\x1b"; choose one of {", ".join([*FORMATS, *FIGURE_FORMATS])}'
    )
