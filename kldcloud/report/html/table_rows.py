"""The published table as HTML that sorts: the columns and figures of report.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kldcloud.report.across_corpora import MacroRow
from kldcloud.report.html.markup import MANY_ROWS, Html, caption, element, foreign, framed, joined
from kldcloud.report.reading import corpus_note
from kldcloud.report.rounding import kld_with_error
from kldcloud.report.table import (
    Column,
    CorpusTable,
    TableRow,
    outcome,
    percent_figure,
    shown_columns,
)

_NAME_SHOWN: Final = 300
_CAUSE_SHOWN: Final = 400


def result_table(table: CorpusTable, *, place: int) -> Html:
    """One corpus's table in a frame that scrolls by itself, with a search field if it is long.

    page.js sorts by the figures that stand in the cells, so that no column is known to it.
    """
    columns = shown_columns(table.rows)
    headings = [
        _heading("candidate", "text"),
        *(_heading(each.heading, "number") for each in columns),
    ]
    whole = element(
        "table",
        caption(joined([foreign(table.corpus.name, limit=_NAME_SHOWN), f": {corpus_note(table)}"])),
        element("thead", element("tr", *headings)),
        element("tbody", *(_row(row, columns) for row in table.rows)),
        class_="results",
        id=f"table-{place}",
    )
    frame = framed(whole, f"Results, table {place + 1}", rows=len(table.rows))
    return joined([_search(place) if len(table.rows) > MANY_ROWS else None, frame])


def macro_table(rows: Sequence[MacroRow], note: str) -> Html:
    """Each candidate over all corpora together."""
    body = [
        element(
            "tr",
            element("th", foreign(row.candidate, limit=_NAME_SHOWN), scope="row"),
            element("td", kld_with_error(row.kld_mean)),
            element("td", percent_figure(row.same_top)),
        )
        for row in rows
    ]
    headings = ("candidate", "mean KLD", "same top\N{NO-BREAK SPACE}%")
    return element(
        "table",
        caption(f"Macro average {note}"),
        element("thead", element("tr", *(element("th", each, scope="col") for each in headings))),
        element("tbody", *body),
        class_="macro",
    )


def _search(place: int) -> Html:
    return element(
        "p",
        element(
            "label",
            "Show candidates whose name has ",
            element("input", type="search", data_filters=f"table-{place}", maxlength="100"),
        ),
        element("output", "", data_counts=f"table-{place}"),
        class_="search needs-script",
    )


def _heading(words: str, kind: str) -> Html:
    # The sign stays with its number where a heading wraps.
    words = words.replace(" %", "\N{NO-BREAK SPACE}%")
    return element(
        "th",
        element(
            "button", words, element("span", "", class_="arrow", aria_hidden="true"), type="button"
        ),
        scope="col",
        aria_sort="none",
        data_kind=kind,
    )


def _row(row: TableRow, columns: tuple[Column, ...]) -> Html:
    instead = outcome(row)
    cells = [
        element("td", instead, class_="instead")
        if instead and column.key == "kld"
        else element("td", column.cell(row))
        for column in columns
    ]
    why = None
    if row.failure:
        why = element("small", foreign(row.failure, limit=_CAUSE_SHOWN), class_="cause")
    name = element("th", foreign(row.candidate, limit=_NAME_SHOWN), why, scope="row")
    return element("tr", name, *cells, class_=None if row.status == "complete" else row.status)
