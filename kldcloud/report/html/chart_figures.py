"""Where a page has its charts: frames that page.js draws into, with captions and choices."""

from __future__ import annotations

from typing import Final

from kldcloud.report.html.curves import MOST_AT_ONCE, Curve
from kldcloud.report.html.markup import Html, element, foreign, joined
from kldcloud.report.html.page_charts import CorpusCharts, PageCharts
from kldcloud.report.html.profile_charts import PROFILE_CHARTS
from kldcloud.report.html.size_chart import METRIC_WORDS
from kldcloud.report.html.size_points import LeftOut, SizePlot

_NAME_SHOWN: Final = 60
_MOST_LEFT_OUT: Final = 12
_HEADINGS: Final = {
    "distribution": "Distribution",
    "position": "By position in the chunk",
    "confidence": "By the base's confidence",
    "class": "By kind of token",
}
_CAPTIONS: Final = {
    "distribution": (
        "Across, a share of the positions; upwards, the KL divergence that they do not exceed."
        " At 50\u00a0% stands the median, at 99.9\u00a0% what one position in a thousand exceeds;"
        " lines end where less than one position is left above."
    ),
    "position": (
        "Mean KL divergence of positions with more and more text before them."
        " Bars are one standard error, cluster-robust by chunk."
    ),
    "confidence": (
        "Mean KL divergence of positions by the entropy of the base's distribution: at the left"
        " it is sure of the next token. Bars are one standard error, cluster-robust by chunk."
    ),
    "class": (
        "Mean KL divergence of positions by what the token that follows begins with. Bars are one"
        " standard error, cluster-robust by chunk."
    ),
}
_SIZE_CAPTION: Final = (
    "Lower is closer to the base, further left is smaller. Bars are intervals of 95\u00a0% of the"
    " mean; short ones hide behind their points. The dashed line is the Pareto frontier."
)


def size_figure(corpus: CorpusCharts) -> Html:
    """The main plot of a corpus; in its place a sentence where nothing can be drawn."""
    chart = corpus.charts.get(f"size-{corpus.place}")
    if chart is None:
        return element("p", "No plot: ", _left_out(corpus.plot), class_="note")
    modes = [
        element(
            "label",
            element(
                "input",
                type="radio",
                name=f"metric-{corpus.place}",
                value=metric,
                checked=at == 0,
                data_mode_of=f"size-{corpus.place}",
            ),
            METRIC_WORDS[metric],
        )
        for at, metric in enumerate(chart["modes"])
    ]
    choice = element("fieldset", element("legend", "Upwards"), *modes, class_="needs-script")
    missing = [" Not drawn: ", _left_out(corpus.plot)] if corpus.plot.left_out else []
    return element(
        "figure",
        element("h3", "KL divergence against file size"),
        choice if len(modes) > 1 else None,
        _frame(f"size-{corpus.place}"),
        element("figcaption", _SIZE_CAPTION, *missing),
    )


def profile_figures(page: PageCharts, corpus: CorpusCharts) -> Html | None:
    """The charts of a corpus's profiles, and a choice of candidates; None without profiles."""
    drawn = [kind for kind in PROFILE_CHARTS if f"{kind}-{corpus.place}" in corpus.charts]
    if not drawn:
        return None
    figures = [
        element(
            "figure",
            element("h4", _HEADINGS[kind]),
            _frame(f"{kind}-{corpus.place}"),
            element("figcaption", _CAPTIONS[kind]),
        )
        for kind in drawn
    ]
    return joined(
        [
            element("h3", "Where the divergence lies"),
            _choice(page.curves, corpus),
            element("div", *figures, class_="profiles"),
        ]
    )


def _choice(curves: tuple[Curve, ...], corpus: CorpusCharts) -> Html:
    boxes = [
        element(
            "label",
            element(
                "input",
                type="checkbox",
                value=str(at),
                checked=curve.candidate in corpus.shown,
                data_shows=str(corpus.place),
            ),
            foreign(curve.candidate, limit=_NAME_SHOWN),
        )
        for at, curve in enumerate(curves)
        if curve.candidate in corpus.profiled
    ]
    many = f", up to {MOST_AT_ONCE} of {len(boxes):,}" if len(boxes) > MOST_AT_ONCE else ""
    return element(
        "details",
        element("summary", f"Choose candidates{many}"),
        element("fieldset", element("legend", "Show"), *boxes),
        class_="choice needs-script",
    )


def _frame(chart: str) -> Html:
    saves = [
        element("button", f"Save {kind.upper()}", type="button", data_draws=chart, value=kind)
        for kind in ("svg", "png")
    ]
    return joined(
        [
            element(
                "div",
                element("p", "The numbers are in the tables; to draw them takes JavaScript."),
                class_="plot",
                id=chart,
            ),
            element("p", *saves, class_="saves needs-script"),
        ]
    )


def _left_out(plot: SizePlot) -> Html:
    def one(each: LeftOut) -> Html:
        return joined([foreign(each.name, limit=_NAME_SHOWN), f" ({each.why})"])

    shown = [one(each) for each in plot.left_out[:_MOST_LEFT_OUT]]
    more = len(plot.left_out) - len(shown)
    ending = f" and {more:,} more." if more else "."
    return joined([joined(shown, ", ") if shown else "no candidates", ending])
