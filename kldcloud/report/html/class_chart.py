"""Mean KL divergence by the kind of token that follows, as a Vega-Lite chart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from kldcloud.report.html.chart_layers import (
    KLD_TOLD,
    ONE_LEGEND,
    axes,
    common,
    domain_with_errors,
    layers,
)
from kldcloud.report.html.chart_style import Layout, chart
from kldcloud.report.html.curves import Curve
from kldcloud.report.profile_shape import Profile

CLASS_WORDS: Final = "KLD by kind of token"
_ASKEW: Final = -30


def class_chart(
    profiles: Sequence[Profile], curves: Sequence[Curve], layout: Layout
) -> dict[str, Any] | None:
    """Mean KL divergence by class of the next token; None without positive means.

    Candidates stand side by side within a class, which no line joins: classes have no order.
    """
    known = [
        (each.mean, each.error or 0.0)
        for profile in profiles
        for each in profile.by_class
        if each.mean is not None and each.mean > 0
    ]
    if not known:
        return None
    names = list(dict.fromkeys(each.name for profile in profiles for each in profile.by_class))
    domain = domain_with_errors(known)
    part = "datum.by_class"
    transform = [
        {"calculate": f"{part}.name", "as": "across"},
        {"calculate": f"{part}.mean", "as": "kld"},
        {"calculate": f"{part}.error", "as": "error"},
        {"filter": "datum.kld > 0"},
        {"calculate": f"max(datum.kld - datum.error, {domain.low})", "as": "least"},
        {"calculate": "datum.kld + datum.error", "as": "most"},
        {
            "calculate": f"datum.across + ', ' + format({part}.tokens, ',') + ' positions'",
            "as": "where",
        },
        KLD_TOLD,
    ]
    across = {
        "field": "across",
        "type": "nominal",
        "sort": names,
        "axis": {"title": "the next token", "labelAngle": _ASKEW, "grid": False},
    }
    return chart(
        layout,
        f"{CLASS_WORDS}: {', '.join(curve.shown for curve in curves)}",
        data={"name": "profiles"},
        transform=[{"flatten": ["by_class"]}, *transform, *common("across")],
        encoding={
            **axes(across, "mean KLD, nats a token", domain, layout),
            "xOffset": {"field": "shown", "type": "nominal"},
        },
        layer=[each for each in layers(curves, layout, errors=True) if each["name"] != "lines"],
        resolve=ONE_LEGEND,
    )
