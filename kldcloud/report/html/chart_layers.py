"""What the charts of a run's profiles share: axes, lines and points, and what is said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from kldcloud.report.html.chart_style import (
    COLOURS,
    PLAIN_NUMBER,
    SHAPES,
    Domain,
    Layout,
    log_ticks,
    padded_log,
)
from kldcloud.report.html.curves import Curve
from kldcloud.report.rounding import TWO_DIGITS

MOST_DECADES: Final = 6.0
# Only the points' legend shows colour and shape together.
ONE_LEGEND: Final = {"legend": {"color": "independent", "shape": "independent"}}
_DIGITS: Final = f"datum.kld && datum.kld < {TWO_DIGITS} ? '.1e' : '.6f'"
KLD_TOLD: Final = {
    "calculate": f"format(datum.kld, {_DIGITS}) + (datum.error === null"
    f" ? '' : ' \u00b1 ' + format(datum.error, {_DIGITS})) + ' nats'",
    "as": "told",
}
"""A mean and its error as tables show them: see `rounding.kld_with_error`."""
_DEEPEST_ERROR: Final = 3
_SHAPES_ON_A_LINE: Final = 9


def domain_with_errors(known: Sequence[tuple[float, float]]) -> Domain:
    """Room for every mean, and for errors unless they come close to a logarithm's depths."""
    least, largest = min(mean for mean, _ in known), max(mean for mean, _ in known)
    low = max(min(mean - error for mean, error in known), least / _DEEPEST_ERROR)
    high = max(mean + error for mean, error in known)
    return padded_log(max(low, largest / 10**MOST_DECADES), high)


def common(order: str) -> list[dict[str, Any]]:
    """What people hear of a point, and which points of a line carry its shape."""
    return [
        {
            "window": [{"op": "row_number", "as": "at"}],
            "sort": [{"field": order}],
            "groupby": ["shown"],
        },
        {"joinaggregate": [{"op": "count", "as": "many"}], "groupby": ["shown"]},
        {
            "calculate": "datum.shown + ', ' + datum.where + ': ' + datum.told",
            "as": "spoken",
        },
        {
            "calculate": f"(datum.at - 1) % ceil(datum.many / {_SHAPES_ON_A_LINE}) === 0",
            "as": "marked",
        },
    ]


def axes(across: Mapping[str, Any], upwards: str, domain: Domain, layout: Layout) -> dict[str, Any]:
    return {
        "x": across,
        "y": {
            "field": "kld",
            "type": "quantitative",
            "scale": {"type": "log", "domain": domain.as_list(), "nice": False},
            "axis": {
                "title": upwards,
                "values": log_ticks(domain, layout.ticks + 2),
                "labelExpr": PLAIN_NUMBER,
            },
        },
    }


def layers(curves: Sequence[Curve], layout: Layout, *, errors: bool) -> list[dict[str, Any]]:
    """Lines with points on them, whose colours and shapes one legend explains.

    page.js gives `color` and `shape` the names of those that a reader chooses.
    """
    names = [curve.shown for curve in curves]
    legend = {"title": None, "columns": layout.legend_columns, "symbolOpacity": 1}
    colour = {
        "field": "shown",
        "type": "nominal",
        "scale": {"domain": names, "range": list(COLOURS[: len(curves)])},
    }
    shape = {
        **colour,
        "scale": {"domain": names, "range": list(SHAPES[: len(curves)])},
        "legend": legend,
    }
    bars = {
        "name": "errors",
        "transform": [{"filter": "datum.error !== null"}],
        "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.45, "clip": True, "aria": False},
        "encoding": {
            "y": {"field": "least"},
            "y2": {"field": "most"},
            "color": {**colour, "legend": None},
        },
    }
    lines = {
        "name": "lines",
        "mark": {"type": "line", "strokeWidth": 1.8, "clip": True, "tooltip": None, "aria": False},
        "encoding": {"color": {**colour, "legend": None}},
    }
    points = {
        "name": "points",
        "transform": [{"filter": "datum.marked"}],
        "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1, "clip": True},
        "encoding": {
            "color": {**colour, "legend": legend},
            "shape": shape,
            "description": {"field": "spoken"},
            "tooltip": [
                {"field": "shown", "title": "candidate"},
                {"field": "where", "title": "where"},
                {"field": "told", "title": "KLD"},
            ],
        },
    }
    return [bars, lines, points] if errors else [lines, points]
