"""A page as a program reads it: its text by element, its data, its policy."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

VOID = {"br", "input", "link", "meta"}


@dataclass(slots=True)
class Node:
    """An element: its tag, its attributes and what is in it."""

    tag: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: list[Node | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(each if isinstance(each, str) else each.text for each in self.children)

    def every(self, tag: str, **attributes: str) -> list[Node]:
        """All such elements below this one, in the order of the document."""
        found = []
        for each in self.children:
            if isinstance(each, Node):
                wanted = {name.rstrip("_"): value for name, value in attributes.items()}
                if each.tag == tag and wanted.items() <= each.attributes.items():
                    found.append(each)
                found += each.every(tag, **attributes)
        return found

    def one(self, tag: str, **attributes: str) -> Node:
        (found,) = self.every(tag, **attributes)
        return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Node("")
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        # A page of ours closes what it opens, in order.
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read(page: str) -> Node:
    """Parse a page; fails if elements do not close as they opened."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == [reader.root]
    return reader.root


def data(document: Node, name: str) -> Any:
    """What one of the page's data blocks holds."""
    return json.loads(document.one("script", id=name).text)
