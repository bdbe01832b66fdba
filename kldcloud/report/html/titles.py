"""What stands above a chart that leaves its page: what it shows, of what, and who measured it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kldcloud.report.escaping import printable
from kldcloud.report.html.size_chart import METRIC_WORDS
from kldcloud.report.html.size_points import Metric
from kldcloud.report.summary_shape import Corpus, Summary

_NAME_SHOWN: Final = 60
_BARS: Final[Mapping[Metric, str]] = {"mean": "; bars: 95 % intervals", "p99_9": ""}


def size_title(summary: Summary, corpus: Corpus, metric: Metric) -> dict[str, Any]:
    """The main plot's title, as Vega-Lite has one."""
    return chart_title(
        summary, corpus, f"{METRIC_WORDS[metric]} against file size", after=_BARS[metric]
    )


def chart_title(summary: Summary, corpus: Corpus, words: str, *, after: str = "") -> dict[str, Any]:
    """A chart's title, as Vega-Lite has one.

    Args:
        summary: the run.
        corpus: the text.
        words: what the chart shows.
        after: what else there is to say of it.
    """
    base, text, version = (
        printable(name, limit=_NAME_SHOWN)
        for name in (summary.base.name, corpus.name, summary.kldcloud)
    )
    engine = " ".join(
        printable(summary.engine[key], limit=_NAME_SHOWN)
        for key in ("name", "version")
        if summary.engine.get(key)
    )
    measured_by = f"kldcloud {version} and {engine}" if engine else f"kldcloud {version}"
    return {
        "text": f"{base}: {words}",
        "subtitle": [
            f"on {text}, {corpus.scored:,} scored positions{after}",
            f"measured with {measured_by}",
        ],
    }
