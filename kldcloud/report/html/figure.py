"""The main plot as a picture to post."""

from __future__ import annotations

from typing import Any, Final, Literal

from kldcloud.errors import UserError
from kldcloud.report.escaping import printable
from kldcloud.report.html.chart_style import WIDE
from kldcloud.report.html.library import VEGA_LITE
from kldcloud.report.html.size_chart import size_chart
from kldcloud.report.html.size_points import Metric, size_plot
from kldcloud.report.html.titles import size_title
from kldcloud.report.summary_shape import Corpus, Summary

FigureFormat = Literal["svg", "png"]
FIGURE_FORMATS: Final = ("svg", "png")

_PNG_SCALE: Final = 2  # pixels to a point: sharp on today's screens


def render_figure(
    summary: Summary,
    format: FigureFormat,  # noqa: A002 - the word that people type
    *,
    corpus: str | None = None,
    metric: Metric = "mean",
) -> bytes:
    """Draw KL divergence against file size: one plot a corpus, below each other.

    Args:
        summary: the run.
        format: an SVG, or a PNG at twice its size.
        corpus: only this one; None for all.
        metric: what stands upwards.

    Returns:
        The file; the same summary gives the same bytes, of one version of the chart library.

    Raises:
        UserError: no such corpus, or nothing to draw.
    """
    import vl_convert

    known = [each.name for each in summary.corpora]
    if corpus is not None and corpus not in known:
        names = ", ".join(printable(each, limit=80) for each in known[:20]) or "none"
        raise UserError(
            f'no corpus "{printable(corpus, limit=80)}" in this run', hint=f"it has: {names}"
        )
    chosen = [each for each in summary.corpora if corpus in {None, each.name}]
    charts = [drawn for each in chosen if (drawn := _chart(summary, each, metric)) is not None]
    if not charts:
        raise UserError(
            "nothing to draw: no candidate has both a file size and a KL divergence above zero",
            hint="see the table: kldcloud report RUN",
        )
    spec = _stacked(charts)
    if format == "svg":
        return vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE).encode()
    return vl_convert.vegalite_to_png(spec, vl_version=VEGA_LITE, scale=_PNG_SCALE)


def _chart(summary: Summary, corpus: Corpus, metric: Metric) -> dict[str, Any] | None:
    title = size_title(summary, corpus, metric)
    return size_chart(size_plot(summary, corpus.name, metric), WIDE, title=title)


def _stacked(charts: list[dict[str, Any]]) -> dict[str, Any]:
    if len(charts) == 1:
        return charts[0]
    whole = {key: charts[0][key] for key in ("$schema", "background", "padding", "config")}
    parts = []
    for at, each in enumerate(charts):
        part = {key: value for key, value in each.items() if key not in whole}
        # Layers of one name would share their data, whichever plot they are in.
        layers = [{**layer, "name": f"{layer['name']}-{at}"} for layer in part["layer"]]
        parts.append({**part, "layer": layers})
    return {**whole, "spacing": 36, "vconcat": parts}
