"""Where a page shows the worst positions: a frame that page.js fills from the page's data."""

from __future__ import annotations

from typing import Any, Final

from kldcloud.report.html.markup import Html, element, foreign, joined
from kldcloud.report.worst_shape import WorstOfRun

ON_PAGE: Final = 50
"""Positions of a candidate on a corpus; worst.json has all of them."""

_NAME_SHOWN: Final = 60
HEAT_FROM: Final = (0.01, 0.1, 0.5, 1.0, 3.0)
"""Nats: where each of the colours of tokens begins. page.js and page.css number them 1 to 5."""


def worst_on_page(worst: WorstOfRun) -> dict[str, Any]:
    """What page.js reads: a page's share of the positions, and where colours begin."""
    plain = worst.to_json_dict()
    for each in plain["worst"]:
        each["positions"] = each["positions"][:ON_PAGE]
    return {**plain, "heat": HEAT_FROM}


def worst_frame(worst: WorstOfRun, corpus: str, *, place: int) -> Html | None:
    """The frame for one corpus; None if nothing was measured on it.

    Args:
        worst: of the run.
        corpus: its name.
        place: its index in the run.
    """
    found = [
        (at, each.candidate)
        for at, each in enumerate(worst.worst)
        if each.corpus == corpus and each.positions
    ]
    if not found:
        return None
    options = [
        element("option", foreign(candidate, limit=_NAME_SHOWN), value=str(at))
        for at, candidate in found
    ]
    heat = [
        element("span", f"{low:g}", class_=f"heat-{level}")
        for level, low in enumerate(HEAT_FROM, 1)
    ]
    return joined(
        [
            element("h3", "Worst positions"),
            element(
                "p",
                "Where the KL divergence is largest: the text around it, what the base gave the"
                " token that follows there and what the candidate gave it, and the five tokens"
                " that each held most probable.",
            ),
            element(
                "p",
                element(
                    "label",
                    "Candidate ",
                    element("select", *options, data_worst=str(place)),
                ),
                element(
                    "span",
                    "A token's colour is the KL divergence at which it was predicted, in nats"
                    " from: ",
                    joined(heat, " "),
                    class_="legend",
                ),
                class_="needs-script worst-choice",
            ),
            element(
                "ol",
                element("li", "To show them takes JavaScript; worst.json has them all."),
                class_="worst",
                id=f"worst-{place}",
            ),
            element(
                "p",
                element("button", "Show more", type="button", data_more=str(place)),
                class_="needs-script",
            ),
        ]
    )
