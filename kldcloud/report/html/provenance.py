"""What was measured, with what, and how to do it again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final

from kldcloud.report.engine_facts import engine_words, other_engines
from kldcloud.report.escaping import printable
from kldcloud.report.html.markup import Html, caption, element, foreign, framed, joined
from kldcloud.report.rounding import MISSING, bits_figure, gib_figure
from kldcloud.report.summary_shape import Base, Candidate, Summary
from kldcloud.report.table import GIB

_NAME_SHOWN: Final = 120


def provenance(summary: Summary) -> Html:
    """Commands, files with their digests, texts, engine and versions."""
    return joined(
        [
            element(
                "p",
                "The job lies beside this report as ",
                element("code", "job.yaml"),
                ". With the same files, texts and engine, it gives the same ",
                element("code", "summary.json"),
                ", byte for byte:",
            ),
            element("pre", *_commands(summary), tabindex="0"),
            element("dl", *_facts(summary)),
            _models(summary),
            _texts(summary),
        ]
    )


def _commands(summary: Summary) -> Iterator[Html]:
    run = _shell_word(summary.run)
    for at, line in enumerate(("kldcloud launch job.yaml", f"kldcloud report {run} --format html")):
        yield element("code", line)
        if not at:
            yield Html("\n")


def _shell_word(name: str) -> str:
    """A run's id is a slug; anything else is not offered for pasting into a shell."""
    return name if name.replace("-", "").replace(".", "").isalnum() and name.isascii() else "RUN"


def _facts(summary: Summary) -> Iterator[Html]:
    yield from _fact("run", summary.run)
    yield from _fact("kldcloud", summary.kldcloud)
    yield from _fact("engine", *engine_words(summary.engine))
    for name, words in other_engines(summary):
        yield from _fact(f"engine of {printable(name, limit=_NAME_SHOWN)}", *words)
    yield from _fact("base stage encoding", summary.encoding)


def _fact(name: str, *values: str) -> Iterator[Html]:
    yield element("dt", name)
    yield element(
        "dd", joined((element("code", foreign(each, limit=_NAME_SHOWN)) for each in values), ", ")
    )


def _models(summary: Summary) -> Html:
    rows = [
        _model("base", summary.base, None),
        *(
            _model("candidate", candidate, candidate.file and PurePosixPath(candidate.file).name)
            for candidate in summary.candidates
        ),
    ]
    return _table("Models", ("", "name", "file", "GiB", "bpw", "SHA-256"), rows)


def _model(what: str, model: Base | Candidate, file: str | None) -> Html:
    return element(
        "tr",
        element("td", what),
        element("th", foreign(model.name, limit=_NAME_SHOWN), scope="row"),
        element("td", foreign(file, limit=_NAME_SHOWN) if file else MISSING),
        element("td", gib_figure(None if model.bytes is None else model.bytes / GIB)),
        element("td", bits_figure(model.bits_per_weight)),
        _digest(model.sha256),
    )


def _texts(summary: Summary) -> Html:
    rows = [
        element(
            "tr",
            element("th", foreign(corpus.name, limit=_NAME_SHOWN), scope="row"),
            element("td", f"{corpus.tokens:,}"),
            element("td", f"{corpus.context:,}"),
            element("td", f"{corpus.chunks:,}"),
            element("td", f"{corpus.scored:,}"),
            _digest(corpus.sha256),
        )
        for corpus in summary.corpora
    ]
    headings = ("name", "tokens", "context", "chunks", "scored positions", "SHA-256")
    return _table("Texts", headings, rows)


def _table(title: str, headings: tuple[str, ...], rows: list[Html]) -> Html:
    head = element("tr", *(element("th", each, scope="col") for each in headings))
    table = element(
        "table",
        caption(title),
        element("thead", head),
        element("tbody", *rows),
        class_="files",
    )
    return framed(table, title, rows=len(rows))


def _digest(sha256: str | None) -> Html:
    shown = element("code", foreign(sha256, limit=_NAME_SHOWN)) if sha256 else MISSING
    return element("td", shown, class_="digest")
