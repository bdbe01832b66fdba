"""What Vega makes of a chart: its marks, where they stand and what they read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import vl_convert

from kldcloud.report.html.library import VEGA_LITE


def scene(chart: Mapping[str, Any]) -> dict[str, Any]:
    """The drawn chart, as Vega's scene graph; positions in pixels from the plot's top left."""
    drawn = vl_convert.vegalite_to_scenegraph(dict(chart), vl_version=VEGA_LITE)
    return dict(drawn["scenegraph"])


def items(drawn: Mapping[str, Any], layer: str) -> list[dict[str, Any]]:
    """The items of a layer, such as its points."""
    found = [mark for mark in _marks(drawn) if mark.get("name") == f"{layer}_marks"]
    return [item for mark in found for item in mark["items"]]


def lines(drawn: Mapping[str, Any], layer: str) -> list[list[dict[str, Any]]]:
    """The points of each line of a layer."""
    return [mark["items"] for mark in _marks(drawn) if mark.get("name") == f"{layer}_marks"]


def words(drawn: Mapping[str, Any], role: str) -> list[str]:
    """Texts of a role, such as `axis-label`, in the order in which they are drawn."""
    return [
        item["text"] for mark in _marks(drawn) if mark.get("role") == role for item in mark["items"]
    ]


def _marks(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "marktype" in node:
        yield node
    for item in node.get("items", []):
        yield from _marks(item)
