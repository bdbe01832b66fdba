"""The page's section on the distillation that made one of its candidates."""

from __future__ import annotations

from kldcloud.qad.result_file import QadResult
from kldcloud.report.escaping import printable
from kldcloud.report.html.markup import Html, caption, element, framed
from kldcloud.report.training_text import HEADINGS, TEXT_SHOWN, look_rows, training_sentences


def training_section(result: QadResult) -> Html:
    """Which candidate was trained, from where, and what held-out text said on the way."""
    rows = look_rows(result)
    table = element(
        "table",
        caption("Held-out KL divergence while it was trained, in nats a token"),
        element("thead", element("tr", *(element("th", each, scope="col") for each in HEADINGS))),
        element("tbody", *(element("tr", *(element("td", each) for each in row)) for row in rows)),
        class_="looks",
    )
    return element(
        "section",
        element("h2", "Training", id="training"),
        *(element("p", each) for each in training_sentences(result, _quoted)),
        framed(table, "Held-out KL divergence while it was trained", rows=len(rows)),
        aria_labelledby="training",
    )


def _quoted(text: str) -> str:
    return printable(text, limit=TEXT_SHOWN)
