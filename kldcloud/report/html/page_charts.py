"""Which charts a page has, each in every mode and layout, and what they need to be drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from kldcloud.report.html.chart_style import COLOURS, LAYOUTS, SHAPES
from kldcloud.report.html.curves import Curve, curves_of, shown_first
from kldcloud.report.html.profile_charts import PROFILE_CHARTS, PROFILE_WORDS
from kldcloud.report.html.size_chart import size_chart
from kldcloud.report.html.size_points import Metric, SizePlot, size_plot
from kldcloud.report.html.titles import chart_title, size_title
from kldcloud.report.profile_shape import Profile, Profiles
from kldcloud.report.summary_shape import Corpus, Summary

_METRICS: Final[tuple[Metric, ...]] = ("mean", "p99_9")


@dataclass(frozen=True, slots=True)
class CorpusCharts:
    """The charts of one corpus.

    Attributes:
        place: its index in the run.
        plot: the main plot's points, of the mean.
        charts: Vega-Lite charts by id, as `PageCharts.to_json_dict` describes them.
        profiled: candidates that have a profile.
        shown: those of them whose curves are there at first.
    """

    place: int
    plot: SizePlot
    charts: Mapping[str, Mapping[str, Any]]
    profiled: tuple[str, ...]
    shown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PageCharts:
    """All charts of a page, and what they call candidates."""

    curves: tuple[Curve, ...]
    corpora: tuple[CorpusCharts, ...]

    def to_json_dict(self) -> dict[str, Any]:
        """What page.js reads.

        `charts` has by id a Vega-Lite chart for each mode and layout, a title for each mode, and
        for a chart of profiles the words before its candidates' names and its corpus, whose
        profiles it takes from the page's data. Its curves
        have a colour and a shape each, those of their place among the chosen ones.
        """
        profiled = any(each.profiled for each in self.corpora)
        return {
            "charts": {name: chart for each in self.corpora for name, chart in each.charts.items()},
            "curves": [asdict(curve) for curve in self.curves] if profiled else [],
            "colours": COLOURS,
            "shapes": SHAPES,
        }


def page_charts(summary: Summary, profiles: Profiles | None) -> PageCharts:
    """Draw what there is to draw of a run."""
    curves = curves_of(summary.candidates)
    corpora = tuple(
        _corpus(summary, corpus, place, curves, _of_corpus(profiles, corpus))
        for place, corpus in enumerate(summary.corpora)
    )
    return PageCharts(curves, corpora)


def _of_corpus(profiles: Profiles | None, corpus: Corpus) -> tuple[Profile, ...]:
    every = profiles.profiles if profiles else ()
    return tuple(each for each in every if each.corpus == corpus.name)


def _corpus(
    summary: Summary,
    corpus: Corpus,
    place: int,
    curves: Sequence[Curve],
    profiles: Sequence[Profile],
) -> CorpusCharts:
    plots = {metric: size_plot(summary, corpus.name, metric) for metric in _METRICS}
    charts: dict[str, Mapping[str, Any]] = {}
    modes = {
        metric: {each.key: size_chart(plot, each) for each in LAYOUTS}
        for metric, plot in plots.items()
        if plot.points
    }
    if modes:
        titles = {metric: size_title(summary, corpus, metric) for metric in modes}
        charts[f"size-{place}"] = {"modes": modes, "titles": titles}
    profiled = tuple(each.candidate for each in profiles)
    shown = shown_first(profiled, _ranked(summary, corpus))
    for kind, draw in PROFILE_CHARTS.items():
        chosen = [curve for curve in curves if curve.candidate in shown]
        layouts = {each.key: draw(profiles, chosen, each) for each in LAYOUTS}
        if chosen and all(layouts.values()):
            charts[f"{kind}-{place}"] = {
                "modes": {"": layouts},
                "titles": {"": chart_title(summary, corpus, PROFILE_WORDS[kind])},
                "words": PROFILE_WORDS[kind],
                "corpus": corpus.name,
                "place": place,
            }
    return CorpusCharts(place, plots["mean"], charts, profiled, shown)


def _ranked(summary: Summary, corpus: Corpus) -> list[str]:
    means = {
        each.candidate: each.result.kld.mean.value
        for each in summary.results
        if each.corpus == corpus.name and each.result
    }
    known = {name: mean for name, mean in means.items() if mean is not None}
    return sorted(known, key=known.__getitem__)
