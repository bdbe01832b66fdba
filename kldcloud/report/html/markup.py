"""HTML in which text is escaped unless it was made here, so that a name never becomes a tag."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Final

from kldcloud.report.escaping import printable

MANY_ROWS: Final = 15
"""Longer tables scroll within the page."""

_VOID: Final = frozenset({"br", "input", "link", "meta"})


class Html(str):
    """Markup.

    What joins it to other strings gives text again, which is then escaped once more: a mistake
    shows on the page and does no harm.
    """

    __slots__ = ()


def text(words: str) -> Html:
    """Text as markup; control and format characters are written out, as `printable` does."""
    return Html(html.escape(printable(words)))


def foreign(name: str, *, limit: int) -> Html:
    """A name from outside: shortened, and kept from turning the words around it right to left."""
    return element("bdi", printable(name, limit=limit))


def element(tag: str, *content: str | None, **attributes: str | bool | None) -> Html:
    """One element.

    Args:
        tag: its name.
        content: text, which is escaped, or markup; None is left out.
        attributes: `for_` and `class_` lose their underscore, others become hyphens; True is an
            attribute without a value, False and None are none at all.
    """
    start = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _VOID:
        return Html(f"<{tag}{start}>")
    return Html(f"<{tag}{start}>{joined(content)}</{tag}>")


def caption(words: str) -> Html:
    """A table's caption, whose words stay in view while a wide table scrolls."""
    return element("caption", element("span", words))


def framed(table: Html, label: str, *, rows: int) -> Html:
    """A table in a frame that scrolls, by keys too, so that the page itself need not.

    Args:
        table: the table.
        label: what the frame is called.
        rows: a table of many has a frame of a screen's height.
    """
    return element(
        "div",
        table,
        class_="scroller long" if rows > MANY_ROWS else "scroller",
        role="region",
        aria_label=label,
        tabindex="0",
    )


def joined(content: Iterable[str | None], between: str = "") -> Html:
    """Pieces in a row; text among them is escaped."""
    pieces = (each if isinstance(each, Html) else text(each) for each in content if each)
    return Html(text(between).join(pieces))


def script(code: str, *, id: str | None = None) -> Html:  # noqa: A002 - HTML's word
    """A script whose text the parser passes on unchanged, so that a digest of it holds.

    Raises:
        ValueError: the code could end its own element, or has line ends that parsers change.
    """
    lowered = code.lower()
    if "</script" in lowered or "<!--" in lowered or "\r" in code or "\0" in code:
        raise ValueError("this script cannot stand inside a page")
    return Html(f"<script{_attribute('id', id)}>{code}</script>")


def data_block(plain: object, *, id: str) -> Html:  # noqa: A002 - HTML's word
    """Exact data as JSON, in an element that no browser runs.

    ASCII alone, and no `<`: nothing in a string can end the element or begin another one.
    """
    encoded = json.dumps(plain, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Html(f'<script type="application/json"{_attribute("id", id)}>{encoded}</script>')


def _attribute(name: str, value: str | bool | None) -> str:
    if value is None or value is False:
        return ""
    written = name.rstrip("_").replace("_", "-")
    return f" {written}" if value is True else f' {written}="{text(value)}"'
