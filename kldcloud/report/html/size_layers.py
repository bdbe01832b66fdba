"""The layers of the main plot, as Vega-Lite has them: frontier, intervals, points and names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from kldcloud.report.html.chart_style import BLUE, INK, MUTED, VERMILION

ON: Final = "on the Pareto frontier"
OFF: Final = "off the frontier"
LABEL_SIZE: Final = 11

Axis = Mapping[str, Any]
Row = Mapping[str, Any]


def frontier_layer(rows: Sequence[Row], size_axis: Axis, kld_axis: Axis) -> dict[str, Any]:
    """Steps along the frontier: what is no better than its smaller neighbour is beaten."""
    return {
        "name": "frontier",
        "data": {"values": list(rows)},
        "mark": {
            "type": "line",
            "interpolate": "step-after",
            "color": BLUE,
            "opacity": 0.65,
            "strokeWidth": 1.5,
            "strokeDash": [5, 3],
            "tooltip": None,
            "aria": False,
        },
        "encoding": {"x": size_axis, "y": kld_axis},
    }


def interval_layer(rows: Sequence[Row], size_axis: Axis, kld_axis: Axis) -> dict[str, Any]:
    """A bar for each point whose interval is known."""
    return {
        "name": "intervals",
        "data": {"values": [row for row in rows if row["low"] is not None]},
        "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.55, "aria": False},
        "encoding": {
            "x": size_axis,
            "y": {**kld_axis, "field": "low"},
            "y2": {"field": "high"},
            "color": _KIND_COLOUR,
        },
    }


def point_layer(rows: Sequence[Row], size_axis: Axis, kld_axis: Axis) -> dict[str, Any]:
    """The candidates; a shape says the same as a colour."""
    return {
        "name": "points",
        "data": {"values": list(rows)},
        "mark": {"type": "point", "filled": True, "opacity": 1, "size": 60},
        "encoding": {
            "x": size_axis,
            "y": kld_axis,
            "color": _KIND_COLOUR,
            "shape": _KIND_SHAPE,
            "description": {"field": "spoken"},
            "tooltip": [
                {"field": "name", "title": "candidate"},
                {"field": "size_text", "title": "file"},
                {"field": "bits_text", "title": "bits a weight"},
                {"field": "kld_text", "title": "KLD"},
                {"field": "kind", "title": "this point is"},
            ],
        },
    }


def leader_layer(names: Sequence[Row]) -> dict[str, Any]:
    """Lines from points to names that stand apart from them."""
    return {
        "name": "leaders",
        "data": {"values": [each for each in names if each["to_x"] is not None]},
        "mark": {"type": "rule", "strokeWidth": 0.8, "color": MUTED, "aria": False},
        "encoding": {
            "x": {"field": "from_x", **_PIXELS},
            "y": {"field": "from_y", **_PIXELS},
            "x2": {"field": "to_x"},
            "y2": {"field": "to_y"},
        },
    }


def name_layer(names: Sequence[Row]) -> dict[str, Any]:
    """Names of points, in pixels: their places were chosen with the plot's size known."""
    return {
        "name": "names",
        "data": {"values": list(names)},
        "mark": {
            "type": "text",
            "align": "left",
            "baseline": "middle",
            "fontSize": LABEL_SIZE,
            "color": INK,
            "tooltip": None,
            "aria": False,
        },
        "encoding": {
            "x": {"field": "left", **_PIXELS},
            "y": {"field": "middle", **_PIXELS},
            "text": {"field": "text"},
        },
    }


_PIXELS: Final = {"type": "quantitative", "scale": None, "axis": None}
_KIND_LEGEND: Final = {"title": None, "columns": 2, "symbolOpacity": 1}
_KIND_COLOUR: Final = {
    "field": "kind",
    "type": "nominal",
    "scale": {"domain": [ON, OFF], "range": [BLUE, VERMILION]},
    "legend": _KIND_LEGEND,
}
_KIND_SHAPE: Final = {
    "field": "kind",
    "type": "nominal",
    "scale": {"domain": [ON, OFF], "range": ["circle", "diamond"]},
    "legend": _KIND_LEGEND,
}
