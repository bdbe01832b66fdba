"""The main plot, KL divergence against file size, as a Vega-Lite chart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kldcloud.report.escaping import printable
from kldcloud.report.html.chart_style import (
    PLAIN_NUMBER,
    Domain,
    Layout,
    chart,
    log_ticks,
    padded_log,
)
from kldcloud.report.html.labels import Label, Segment, Spot, place_labels
from kldcloud.report.html.shown_names import shown_names
from kldcloud.report.html.size_layers import (
    LABEL_SIZE,
    OFF,
    ON,
    frontier_layer,
    interval_layer,
    leader_layer,
    name_layer,
    point_layer,
)
from kldcloud.report.html.size_points import Metric, SizePlot, SizePoint
from kldcloud.report.rounding import (
    Measured,
    bits_figure,
    kld_figure,
    kld_with_error,
    size_figure,
)
from kldcloud.report.table import GIB

METRIC_WORDS: Final[Mapping[Metric, str]] = {"mean": "mean KLD", "p99_9": "99.9 % KLD"}

_NAME_TOLD: Final = 120
_MOST_SPOKEN: Final = 20
_SMALL_GIB: Final = 0.05
_LOWEST_BAR: Final = 10  # a bar goes down to no less than this part of the smallest value
_PADDING: Final = 0.06
_LEAST_SPAN: Final = 0.1  # of the largest file


@dataclass(frozen=True, slots=True)
class SizeAxes:
    """What the two axes span, and a point's place on them in pixels from the top left."""

    size: Domain
    kld: Domain
    width: int
    height: int

    def spot(self, size: float, kld: float) -> Spot:
        across = (size - self.size.low) / (self.size.high - self.size.low)
        up = math.log(kld / self.kld.low) / math.log(self.kld.high / self.kld.low)
        return Spot(across * self.width, (1 - up) * self.height)


def size_chart(
    plot: SizePlot, layout: Layout, *, title: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Draw a corpus: points, intervals of 95 %, names and the Pareto frontier.

    Args:
        plot: what is drawn.
        layout: how large.
        title: Vega-Lite's; a page has its own.

    Returns:
        A Vega-Lite chart, its data inside; None where nothing can be drawn.
    """
    if not plot.points:
        return None
    unit, unit_bytes = _unit(plot)
    axes = _axes(plot, layout, unit_bytes)
    rows = [_row(point, axes, unit_bytes) for point in plot.points]
    names = [
        {
            "text": label.text,
            "left": label.left,
            "middle": label.middle,
            "from_x": round(spot.x, 1),
            "from_y": round(spot.y, 1),
            "to_x": label.leader.x if label.leader else None,
            "to_y": label.leader.y if label.leader else None,
        }
        for label, spot in _labels(plot, axes, layout, unit_bytes)
    ]
    frontier = [{"size": point.bytes / unit_bytes, "kld": point.kld} for point in plot.frontier()]
    size_axis = {
        "field": "size",
        "type": "quantitative",
        "scale": {"domain": axes.size.as_list(), "nice": False, "zero": False},
        "axis": {"title": f"file size, {unit}", "tickCount": layout.ticks},
    }
    kld_axis = {
        "field": "kld",
        "type": "quantitative",
        "scale": {"type": "log", "domain": axes.kld.as_list(), "nice": False},
        "axis": {
            "title": f"{METRIC_WORDS[plot.metric]}, nats a token",
            "values": log_ticks(axes.kld, layout.ticks + 2),
            "labelExpr": PLAIN_NUMBER,
        },
    }
    layers = [
        frontier_layer(frontier, size_axis, kld_axis),
        *([interval_layer(rows, size_axis, kld_axis)] if plot.metric == "mean" else []),
        leader_layer(names),
        point_layer(rows, size_axis, kld_axis),
        name_layer(names),
    ]
    parts = {"title": title} if title else {}
    return chart(layout, describe(plot), **parts, layer=layers)


def describe(plot: SizePlot) -> str:
    """The plot in words: every point of a small one, the frontier of any."""
    many = len(plot.points)
    frontier = ", ".join(_spoken(point) for point in plot.frontier()[:_MOST_SPOKEN])
    return (
        f"{METRIC_WORDS[plot.metric]} against file size for {many}"
        f" candidate{'s' if many > 1 else ''}, logarithmic upwards."
        f" On the Pareto frontier, from the smallest file: {frontier}."
    )


def _spoken(point: SizePoint) -> str:
    name = printable(point.name, limit=60)
    return f"{name} ({size_figure(point.bytes / GIB)}, {kld_figure(point.kld)} nats)"


def _unit(plot: SizePlot) -> tuple[str, float]:
    largest = max(point.bytes for point in plot.points)
    return ("GiB", GIB) if largest >= _SMALL_GIB * GIB else ("MiB", GIB / 1024)


def _axes(plot: SizePlot, layout: Layout, unit_bytes: float) -> SizeAxes:
    sizes = [point.bytes / unit_bytes for point in plot.points]
    low, high = min(sizes), max(sizes)
    # Files that differ by a few tensors would stand at opposite ends, as if that were much.
    short = max(high * _LEAST_SPAN - (high - low), 0) / 2
    low, high = low - short, high + short
    room = (high - low) * _PADDING or 1.0
    values = [point.kld for point in plot.points]
    ends = [end for point in plot.points for end in point.interval95 or () if end > 0]
    floor = min(values) / _LOWEST_BAR
    return SizeAxes(
        size=Domain(float(f"{max(low - room, 0):.4g}"), float(f"{high + room:.4g}")),
        kld=padded_log(max(min([*values, *ends]), floor), max([*values, *ends])),
        width=layout.width,
        height=layout.height,
    )


def _row(point: SizePoint, axes: SizeAxes, unit_bytes: float) -> dict[str, Any]:
    low, high = point.interval95 or (None, None)
    name = printable(point.name, limit=_NAME_TOLD)
    size = size_figure(point.bytes / GIB)
    kld = kld_with_error(Measured(point.kld, point.error))
    kind = ON if point.on_frontier else OFF
    return {
        "name": name,
        "size": point.bytes / unit_bytes,
        "kld": point.kld,
        # A logarithmic axis has no zero: a bar that reaches it ends where the plot does.
        "low": None if low is None else max(low, axes.kld.low),
        "high": high,
        "kind": kind,
        "size_text": size,
        "bits_text": bits_figure(point.bits_per_weight),
        "kld_text": f"{kld} nats",
        "spoken": f"{name}: {size}, {kld} nats, {kind}",
    }


def _labels(
    plot: SizePlot, axes: SizeAxes, layout: Layout, unit_bytes: float
) -> list[tuple[Label, Spot]]:
    shown = shown_names([point.name for point in plot.points], limit=layout.name_shown)
    points = plot.points
    # Those of the frontier choose their places first.
    order = sorted(range(len(points)), key=lambda at: (not points[at].on_frontier, points[at].kld))
    spots = [axes.spot(points[at].bytes / unit_bytes, points[at].kld) for at in order]
    crowded = len(points) > layout.most_names
    named = [at for at in order if points[at].on_frontier or not crowded]
    lines = [*_bar_lines(plot, axes, unit_bytes), *_frontier_lines(plot, axes, unit_bytes)]
    labels = place_labels(
        [shown[at] for at in named],
        spots,
        lines,
        Spot(layout.width, layout.height),
        size=LABEL_SIZE,
    )
    return [(label, spot) for label, spot in zip(labels, spots, strict=False) if label]


def _bar_lines(plot: SizePlot, axes: SizeAxes, unit_bytes: float) -> list[Segment]:
    lines = []
    for point in plot.points:
        if point.interval95:
            ends = (max(each, axes.kld.low) for each in point.interval95)
            lines.append(Segment(*(axes.spot(point.bytes / unit_bytes, each) for each in ends)))
    return lines


def _frontier_lines(plot: SizePlot, axes: SizeAxes, unit_bytes: float) -> list[Segment]:
    spots = [axes.spot(point.bytes / unit_bytes, point.kld) for point in plot.frontier()]
    lines = []
    for one, other in itertools.pairwise(spots):
        corner = Spot(other.x, one.y)
        lines += [Segment(one, corner), Segment(corner, other)]
    return lines
