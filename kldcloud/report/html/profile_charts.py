"""Where on the text divergence lies, as Vega-Lite charts: distribution, position and so on.

The charts hold no measurements, so that every number stands once in a page: page.js hands them the
run's profiles as the data set `profiles`, each with what charts call its candidate as `shown`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from kldcloud.report.html.chart_layers import (
    KLD_TOLD,
    MOST_DECADES,
    ONE_LEGEND,
    axes,
    common,
    domain_with_errors,
    layers,
)
from kldcloud.report.html.chart_style import Layout, chart, padded_log
from kldcloud.report.html.class_chart import CLASS_WORDS, class_chart
from kldcloud.report.html.curves import Curve
from kldcloud.report.profile_shape import Bin, Profile

_LEAST_SHARE: Final = 0.2  # what lies below this share of the positions does not stretch the axis


def distribution_chart(
    profiles: Sequence[Profile], curves: Sequence[Curve], layout: Layout
) -> dict[str, Any] | None:
    """KL divergence of the share of positions that have no more; None without positive ones.

    The axis of shares gives each further nine the same room: 90 %, 99 %, 99.9 %. It ends where
    less than one position is left above: beyond that a quantile is the largest value again.
    """
    positions = max((sum(bin_.tokens for bin_ in each.by_position) for each in profiles), default=0)
    last = 1 - (1 - _ROUNDING) / positions if positions else 1.0
    heights = [
        (share, value)
        for profile in profiles
        for share, value in profile.curve
        if share is not None and value is not None and value > 0 and share < last
    ]
    shares = [share for share, _ in heights]
    if not heights:
        return None
    largest = max(value for _, value in heights)
    within = [value for share, value in heights if share >= _LEAST_SHARE] or [largest]
    domain = padded_log(max(min(within), largest / 10**MOST_DECADES), largest, 0.04)
    rarest = 1 - max(shares)
    marks = [mark for mark in _RARITIES if mark >= rarest * (1 - _ROUNDING)]
    transform = [
        {"calculate": "datum.curve[0]", "as": "share"},
        {"calculate": "datum.curve[1]", "as": "kld"},
        {"filter": "datum.share !== null && datum.kld > 0"},
        {"filter": f"datum.share < {last!r}"},
        {"calculate": "1 - datum.share", "as": "rarer"},
        {"calculate": "format(100 * datum.share, '.6~f') + ' % of the positions'", "as": "where"},
        {"calculate": "'at most ' + format(datum.kld, '.4~g') + ' nats'", "as": "told"},
    ]
    across = {
        "field": "rarer",
        "type": "quantitative",
        "scale": {"type": "log", "domain": [rarest, 1], "nice": False, "reverse": True},
        "axis": {
            "title": "share of the positions",
            "values": marks,
            # A log of 1 - share, labelled with the share; rounded, for 1 - 0.001 has a tail.
            "labelExpr": "format(100 * (1 - datum.value), '.6~f') + ' %'",
        },
    }
    return chart(
        layout,
        _description("distribution", curves),
        data={"name": "profiles"},
        transform=[{"flatten": ["curve"]}, *transform, *common("share")],
        encoding=axes(across, "KLD not exceeded, nats", domain, layout),
        layer=layers(curves, layout, errors=False),
        resolve=ONE_LEGEND,
    )


def position_chart(
    profiles: Sequence[Profile], curves: Sequence[Curve], layout: Layout
) -> dict[str, Any] | None:
    """Mean KL divergence by position in the chunk; None without positive means."""
    return _binned(
        profiles,
        curves,
        layout,
        kind="position",
        bins=lambda profile: profile.by_position,
        axis="position in the chunk, tokens",
    )


def confidence_chart(
    profiles: Sequence[Profile], curves: Sequence[Curve], layout: Layout
) -> dict[str, Any] | None:
    """Mean KL divergence by the base's entropy; None without positive means."""
    return _binned(
        profiles,
        curves,
        layout,
        kind="confidence",
        bins=lambda profile: profile.by_confidence,
        axis="entropy of the base, nats: sure to unsure",
    )


Draw = Callable[[Sequence[Profile], Sequence[Curve], Layout], dict[str, Any] | None]
PROFILE_CHARTS: Final[Mapping[str, Draw]] = MappingProxyType(
    {
        "distribution": distribution_chart,
        "position": position_chart,
        "confidence": confidence_chart,
        "class": class_chart,
    }
)

PROFILE_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "distribution": "KLD distribution",
        "position": "KLD by position in the chunk",
        "confidence": "KLD by the base's confidence",
        "class": CLASS_WORDS,
    }
)


def _binned(
    profiles: Sequence[Profile],
    curves: Sequence[Curve],
    layout: Layout,
    *,
    kind: str,
    bins: Callable[[Profile], Iterable[Bin]],
    axis: str,
) -> dict[str, Any] | None:
    known = [
        (each.mean, each.error or 0.0)
        for profile in profiles
        for each in bins(profile)
        if each.low is not None and each.mean is not None and each.mean > 0
    ]
    if not known:
        return None
    domain = domain_with_errors(known)
    field = f"by_{kind}"
    part = f"datum.{field}"
    transform = [
        {"calculate": f"{part}.low", "as": "low"},
        {"calculate": f"{part}.high", "as": "high"},
        {"calculate": f"{part}.mean", "as": "kld"},
        {"calculate": f"{part}.error", "as": "error"},
        {"calculate": f"{part}.tokens", "as": "tokens"},
        {"filter": "datum.low !== null && datum.kld > 0"},
        # The last bin may be open: it stands at its beginning.
        {
            "calculate": "datum.high === null ? datum.low : (datum.low + datum.high) / 2",
            "as": "across",
        },
        {
            "calculate": f"max(datum.kld - datum.error, {domain.low})",
            "as": "least",
        },
        {"calculate": "datum.kld + datum.error", "as": "most"},
        {
            "calculate": "format(datum.low, '.4~g') + (datum.high === null ? ' and more'"
            " : ' to ' + format(datum.high, '.4~g')) + ', ' + format(datum.tokens, ',')"
            " + ' positions'",
            "as": "where",
        },
        KLD_TOLD,
    ]
    across = {
        "field": "across",
        "type": "quantitative",
        "scale": {"zero": False, "nice": False, "padding": 10},
        "axis": {"title": axis, "tickCount": layout.ticks, "grid": False},
    }
    return chart(
        layout,
        _description(kind, curves),
        data={"name": "profiles"},
        transform=[{"flatten": [field]}, *transform, *common("across")],
        encoding=axes(across, "mean KLD, nats a token", domain, layout),
        layer=layers(curves, layout, errors=True),
        resolve=ONE_LEGEND,
    )


def _description(kind: str, curves: Sequence[Curve]) -> str:
    """What a person hears of the whole chart; page.js says the same of those chosen later."""
    return f"{PROFILE_WORDS[kind]}: {', '.join(curve.shown for curve in curves)}"


# The share of positions that exceed a value, where an axis says something.
_RARITIES: Final = (1.0, 0.5, 0.1, 0.01, 0.001, 1e-4, 1e-5, 1e-6, 1e-7)
_ROUNDING: Final = 1e-6
