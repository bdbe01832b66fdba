"""How charts look: sizes, fonts and colours, the same on the page and in a posted picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

SCHEMA: Final = "https://vega.github.io/schema/vega-lite/v6.json"
# Arial and Helvetica have the same widths, so names stay where they were placed.
FONT: Final = "Liberation Sans, Arial, Helvetica, sans-serif"

# page.css says what the first four become on a dark page, by these very values.
PAPER: Final = "#ffffff"
INK: Final = "#1b1f24"
MUTED: Final = "#59616b"
GRID: Final = "#dfe3e8"

BLUE: Final = "#0072b2"
VERMILION: Final = "#d55e00"
# Okabe and Ito, "Color Universal Design" (2008). Their black is the page's ink, and grey stands for
# the yellow that white paper swallows.
COLOURS: Final = (BLUE, VERMILION, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK, "#868686")
SHAPES: Final = (
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "cross",
    "triangle-down",
    "triangle-right",
    "triangle-left",
)


@dataclass(frozen=True, slots=True)
class Layout:
    """The size of a chart's plot in pixels, and what fits into it.

    Attributes:
        key: what page.js calls it.
        width: of the plot, without axes.
        height: of the plot, without axes.
        name_shown: longest name in characters.
        most_names: where there are more points, only those of the frontier are named.
        legend_columns: of names in a row.
        ticks: about so many to an axis.
    """

    key: str
    width: int
    height: int
    name_shown: int
    most_names: int
    legend_columns: int
    ticks: int


WIDE: Final = Layout("wide", 640, 380, 32, 40, 4, 8)
NARROW: Final = Layout("narrow", 292, 300, 18, 20, 2, 5)
LAYOUTS: Final = (WIDE, NARROW)


@dataclass(frozen=True, slots=True)
class Domain:
    """What an axis spans."""

    low: float
    high: float

    def as_list(self) -> list[float]:
        return [self.low, self.high]


def chart(layout: Layout, description: str, **rest: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """A Vega-Lite chart with our looks.

    Args:
        layout: its size.
        description: what a person hears who does not see it.
        rest: data, layers and so on, as Vega-Lite names them.
    """
    return {
        "$schema": SCHEMA,
        "description": description,
        "width": layout.width,
        "height": layout.height,
        "background": PAPER,
        "padding": 6,
        "config": _CONFIG,
        **rest,
    }


PLAIN_NUMBER: Final = "'' + datum.value"
"""A label that reads 0.0003 where Vega's own would choose between that and 3e-4 by the axis."""


def log_ticks(domain: Domain, most: int) -> list[float]:
    """Round numbers for a logarithmic axis: 1, 2 and 5 times powers of ten, or fewer of them."""
    first, last = math.floor(math.log10(domain.low)), math.ceil(math.log10(domain.high))
    powers = range(first, last + 1)
    for steps in ((1, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{step}e{power}") for power in powers for step in steps]
        inside = [tick for tick in ticks if domain.low <= tick <= domain.high]
        if len(inside) <= most:
            return inside
    return inside[:: math.ceil(len(inside) / most)]


def padded_log(low: float, high: float, share: float = 0.07) -> Domain:
    """A logarithmic domain with some room at both ends; both values must be positive."""
    span = max(math.log10(high / low), 0.3)
    factor = 10 ** (span * share)
    return Domain(float(f"{low / factor:.4g}"), float(f"{high * factor:.4g}"))


_TEXT: Final = {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal"}
_CONFIG: Final[Mapping[str, Any]] = {
    "font": FONT,
    "view": {"stroke": None},
    "axis": {
        **_TEXT,
        "labelColor": MUTED,
        "titleColor": INK,
        "gridColor": GRID,
        "domainColor": MUTED,
        "tickColor": MUTED,
        "titlePadding": 8,
    },
    "legend": {
        **_TEXT,
        "labelColor": INK,
        "titleColor": INK,
        "orient": "bottom",
        "labelLimit": 260,
        "symbolSize": 80,
    },
    "title": {
        "anchor": "start",
        "color": INK,
        "subtitleColor": MUTED,
        "fontSize": 15,
        "subtitleFontSize": 12,
        "fontWeight": "bold",
        "offset": 12,
        "limit": 640,
    },
}
