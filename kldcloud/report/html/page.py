"""report.html: one file that holds a run's report, its data and what draws it; it loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from importlib import resources
from typing import Final

from kldcloud.errors import FormatError
from kldcloud.qad.result_file import QadResult
from kldcloud.report.across_corpora import macro_note, macro_rows
from kldcloud.report.corpus_notes import corpus_notes
from kldcloud.report.escaping import printable
from kldcloud.report.html.chart_figures import profile_figures, size_figure
from kldcloud.report.html.library import chart_library
from kldcloud.report.html.markup import Html, data_block, element, foreign, framed, joined, script
from kldcloud.report.html.page_charts import PageCharts, page_charts
from kldcloud.report.html.provenance import provenance
from kldcloud.report.html.table_rows import macro_table, result_table
from kldcloud.report.html.training_section import training_section
from kldcloud.report.html.verdicts import ranking, verdict_list
from kldcloud.report.html.worst_section import worst_frame, worst_on_page
from kldcloud.report.profile_shape import Profiles
from kldcloud.report.reading import corpus_note, how_to_read, progress_note, run_warnings
from kldcloud.report.summary_shape import Summary
from kldcloud.report.table import CorpusTable, corpus_tables
from kldcloud.report.worst_shape import WorstOfRun

_NAME_SHOWN: Final = 120


def render_html(
    summary: Summary,
    profiles: Profiles | None = None,
    worst: WorstOfRun | None = None,
    training: QadResult | None = None,
) -> str:
    """Write a run's report as one HTML file that needs no network.

    Args:
        summary: the run.
        profiles: where its divergence lies; without them, those charts are left out.
        worst: its worst positions; without them, they are left out.
        training: the distillation that made one of its candidates, if one did.

    Returns:
        The page; the same arguments give the same text, of one version of the chart library.

    Raises:
        FormatError: the profiles or the worst positions are of another run.
    """
    for what, run in (("profiles", profiles), ("worst positions", worst)):
        if run is not None and run.run != summary.run:
            raise FormatError(
                f"the {what} are of run {printable(run.run, limit=_NAME_SHOWN)},"
                f" not {printable(summary.run, limit=_NAME_SHOWN)}"
            )
    charts = page_charts(summary, profiles)
    style = _file("page.css")
    # About 900 kB, nearly all of a small run's page.
    library, behaviour = chart_library(), _file("page.js")
    body = joined(
        [
            _header(summary),
            element("main", *_main(summary, charts, worst, training)),
            _footer(summary),
            data_block(summary.to_json_dict(), id="summary"),
            data_block(profiles.to_json_dict(), id="profiles") if profiles else None,
            data_block(worst_on_page(worst), id="worst") if worst else None,
            data_block(charts.to_json_dict(), id="charts"),
            script(library, id="library"),
            script(behaviour, id="behaviour"),
        ]
    )
    head = joined(
        [
            element("meta", charset="utf-8"),
            element(
                "meta",
                http_equiv="Content-Security-Policy",
                content=_policy(style, library, behaviour),
            ),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("meta", name="referrer", content="no-referrer"),
            # Without one, browsers ask the server that a page comes from for /favicon.ico.
            element("link", rel="icon", href="data:,"),
            element("title", f"KL divergence: {summary.name}"),
            Html(f"<style>{style}</style>"),
        ],
        "",
    )
    page = element("html", element("head", head), element("body", body), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def _policy(style: str, *scripts: str) -> str:
    """What the page may do: run and wear what stands in it, by digest, and load nothing.

    Vega compiles its expressions to functions, for which a page needs 'unsafe-eval'. page.js has it
    interpret them instead (vega-embed's `ast`), so that this can do without.
    """
    allowed = " ".join(map(_source, scripts))
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_source(style)};"
        " img-src data:; base-uri 'none'; form-action 'none'"
    )


def _source(code: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"


def _file(name: str) -> str:
    whole = resources.files("kldcloud.report.html").joinpath(name).read_text(encoding="utf-8")
    return whole.replace("\r\n", "\n")


def _header(summary: Summary) -> Html:
    many = len(summary.candidates)
    measured_by = " ".join(
        summary.engine[key] for key in ("name", "version") if summary.engine.get(key)
    )
    return element(
        "header",
        element(
            "div",
            element("h1", "KL divergence: ", foreign(summary.name, limit=_NAME_SHOWN)),
            element(
                "p",
                f"{many:,} candidate{'' if many == 1 else 's'} against ",
                element("strong", foreign(summary.base.name, limit=_NAME_SHOWN)),
                *((", ", foreign(measured_by, limit=_NAME_SHOWN)) if measured_by else ()),
            ),
        ),
        element("button", "Dark", type="button", id="theme", class_="needs-script"),
    )


def _main(
    summary: Summary, charts: PageCharts, worst: WorstOfRun | None, training: QadResult | None
) -> Iterator[Html]:
    tables = corpus_tables(summary)
    yield element("section", *_summary(summary, tables), id="results", aria_labelledby="in-short")
    for place, table in enumerate(tables):
        yield element(
            "section",
            *_corpus(summary, table, place, charts),
            worst_frame(worst, table.corpus.name, place=place) if worst else None,
            id=f"corpus-{place}",
            aria_labelledby=f"heading-{place}",
        )
    if training is not None:
        yield training_section(training)
    yield element(
        "section",
        element("h2", "How to read this", id="reading"),
        *(element("p", each) for each in _reading(summary)),
        aria_labelledby="reading",
    )
    yield element(
        "section",
        element("h2", "How to reproduce it", id="reproducing"),
        provenance(summary),
        aria_labelledby="reproducing",
    )


def _summary(summary: Summary, tables: tuple[CorpusTable, ...]) -> Iterator[Html]:
    yield element("h2", "In short", id="in-short")
    if note := progress_note(summary):
        yield element("p", note, class_="note")
    for warning in run_warnings(summary, _quoted):
        yield element("p", warning, class_="note")
    yield element(
        "div",
        *(
            element(
                "div",
                _link(table, place) if len(tables) > 1 else None,
                verdict_list(summary, table.corpus),
            )
            for place, table in enumerate(tables)
        ),
        class_="corpora",
    )
    if rows := macro_rows(summary):
        yield element("h3", "Over all texts")
        yield framed(macro_table(rows, macro_note(summary)), "Over all texts", rows=len(rows))


def _quoted(name: str) -> str:
    return printable(name, limit=_NAME_SHOWN)


def _link(table: CorpusTable, place: int) -> Html:
    name = foreign(table.corpus.name, limit=_NAME_SHOWN)
    return element("h3", "On ", element("a", name, href=f"#corpus-{place}"))


def _corpus(
    summary: Summary, table: CorpusTable, place: int, charts: PageCharts
) -> Iterator[Html | None]:
    corpus = table.corpus
    yield element("h2", "On ", foreign(corpus.name, limit=_NAME_SHOWN), id=f"heading-{place}")
    yield element("p", corpus_note(table), class_="size")
    for note in corpus_notes(summary, corpus.name, _quoted):
        yield element("p", note)
    yield size_figure(charts.corpora[place])
    yield element("h3", "Every figure")
    yield result_table(table, place=place)
    comparison = next((each for each in summary.comparisons if each.corpus == corpus.name), None)
    if comparison and comparison.pairs:
        yield element("h3", "Ranking")
        label = f"Ranking, table {place + 1}"
        yield framed(ranking(summary, comparison), label, rows=len(comparison.ranks))
    yield profile_figures(charts, charts.corpora[place])


def _reading(summary: Summary) -> Iterator[str]:
    yield how_to_read(summary)
    yield (
        "The plot's bars are intervals of 95\u00a0%. Two candidates whose bars overlap may still be"
        " distinguishable: they were measured on the same tokens, and what moves both alike"
        " cancels in their difference. The verdicts above and the ranking go by that."
    )
    yield (
        "The Pareto frontier joins the candidates that no other beats: none has both a file and"
        " a KL divergence as small, and one of them smaller. It goes by the values as measured."
    )


def _footer(summary: Summary) -> Html:
    return element(
        "footer",
        element(
            "p",
            "Made by kldcloud ",
            foreign(summary.kldcloud, limit=_NAME_SHOWN),
            ". All data is in this file.",
        ),
        element(
            "p",
            element("button", "Save the data as JSON", type="button", data_saves="summary"),
            class_="needs-script",
        ),
    )
