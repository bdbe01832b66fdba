"""Markup: text stays text, whatever it holds."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from kldcloud.report.html.markup import Html, data_block, element, foreign, joined, script, text

HOSTILE = "</script><img src=x onerror=alert(1)>&amp;\"'\u202e\x1b\ud800"


class Tags(HTMLParser):
    """The tags of a document and the text between them, as a browser's parser finds them."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.data += data


def test_text_is_escaped_and_what_is_hidden_in_it_is_shown() -> None:
    found = Tags(element("p", HOSTILE))
    assert [tag for tag, _ in found.tags] == ["p"]
    assert found.data == "</script><img src=x onerror=alert(1)>&amp;\"'\\u202e\\x1b\\ud800"


def test_attributes_are_escaped() -> None:
    found = Tags(element("input", value=HOSTILE, checked=True, disabled=False, title=None))
    assert found.tags == [
        (
            "input",
            {
                "value": "</script><img src=x onerror=alert(1)>&amp;\"'\\u202e\\x1b\\ud800",
                "checked": None,
            },
        )
    ]


def test_markup_stays_markup_and_nothing_is_escaped_twice() -> None:
    made = element("p", "a < b ", element("b", "c & d"), None, class_="x", data_of="1")
    assert made == '<p class="x" data-of="1">a &lt; b <b>c &amp; d</b></p>'
    assert joined([text("<"), "<"], " & ") == "&lt; &amp; &lt;"


def test_markup_that_was_joined_to_a_string_is_text_again() -> None:
    assert element("p", "<" + element("b", "c")) == "<p>&lt;&lt;b&gt;c&lt;/b&gt;</p>"
    assert isinstance(element("p"), Html)


def test_a_name_from_outside_cannot_turn_the_words_around_it() -> None:
    made = foreign("\u05e9\u05dc\u05d5\u05dd\u202e" + "x" * 300, limit=20)
    assert made.startswith("<bdi>\u05e9\u05dc\u05d5\u05dd\\u2")
    assert len(made) == 20 + len("<bdi></bdi>")


@pytest.mark.parametrize("code", ["a</ScRiPt >b", "a<!--b", "a\r\nb", "a\0b"])
def test_a_script_that_a_parser_would_change_is_refused(code: str) -> None:
    with pytest.raises(ValueError, match="cannot stand inside a page"):
        script(code)


def test_data_comes_out_of_its_block_as_it_went_in() -> None:
    plain = {"name": HOSTILE, "numbers": [0.1, -1e-300, 2**62, None]}
    block = data_block(plain, id="d")
    inside = block.removeprefix('<script type="application/json" id="d">').removesuffix("</script>")
    assert "<" not in inside
    assert inside.isascii()
    assert json.loads(inside) == plain


def test_data_that_json_has_no_word_for_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        data_block([float("nan")], id="d")
