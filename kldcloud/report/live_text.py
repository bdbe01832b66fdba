"""The table below the bar of a launch: running means that fit a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from rich.cells import cell_len

from kldcloud.report.escaping import printable
from kldcloud.report.running_figures import mean_figure, of_total, span, top_figure
from kldcloud.status.live import LiveStatus
from kldcloud.status.progress import ResultStatus

_GAP: Final = "  "
_HEADINGS: Final = ("candidate", "chunks", "mean KLD", "same top %")
_NAME_LEAST: Final = 8
_FEWEST_ROWS: Final = 3


def live_lines(status: LiveStatus, *, width: int, height: int) -> list[str]:
    """Write a running table, and the pace below it; nothing in it steers a terminal.

    Args:
        status: as it was looked up.
        width: no line is wider, in cells, unless names would have fewer than 8 of them.
        height: no more lines than these, if 6 or more.
    """
    results = status.results
    if not results:
        return []
    corpora = len({each.corpus for each in results})
    # A heading, the pace, what was left out, and a line a corpus.
    room = max(height - 3 - (corpora if corpora > 1 else 0), _FEWEST_ROWS)
    shown = _worth_showing(results, room)
    lines = list(_table(shown, width, titled=corpora > 1))
    if len(shown) < len(results):
        lines.append(f"and {len(results) - len(shown):,} more")
    return [*lines, *_pace(status)]


def _worth_showing(results: Sequence[ResultStatus], room: int) -> list[ResultStatus]:
    """If there are too many: those under way, then those that are done, in their own order."""

    def rank(at: int) -> tuple[int, int]:
        result = results[at]
        if not result.chunks_done:
            return 2, at
        return int(result.chunks_done == result.chunks), at

    kept = sorted(sorted(range(len(results)), key=rank)[:room])
    return [results[at] for at in kept]


def _table(results: Sequence[ResultStatus], width: int, *, titled: bool) -> Iterator[str]:
    figures = [
        (of_total(each.chunks_done, each.chunks), mean_figure(each), top_figure(each))
        for each in results
    ]
    widths = [max(map(cell_len, column)) for column in zip(_HEADINGS[1:], *figures, strict=True)]
    room = max(width - sum(widths) - len(_GAP) * len(widths), _NAME_LEAST)
    names = [_fitted(each.candidate, room) for each in results]
    widths = [max(map(cell_len, (_HEADINGS[0][:room], *names))), *widths]
    yield _line((_HEADINGS[0][:room], *_HEADINGS[1:]), widths)
    rows = zip(results, names, figures, strict=True)
    for corpus, group in groupby(rows, lambda row: row[0].corpus):
        if titled:
            yield f"on {_fitted(corpus, width - 3)}"
        for _, name, its in group:
            yield _line((name, *its), widths)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, *figures = cells
    parts = [name + " " * (widths[0] - cell_len(name))]
    parts += [
        " " * (width - cell_len(cell)) + cell
        for cell, width in zip(figures, widths[1:], strict=True)
    ]
    return _GAP.join(parts)


def _fitted(name: str, room: int) -> str:
    """A name in so many cells; wide characters take two."""
    for limit in range(room, _NAME_LEAST // 2, -1):
        shown = printable(name, limit=limit)
        if cell_len(shown) <= room:
            return shown
    return printable(name, limit=_NAME_LEAST // 2)


def _pace(status: LiveStatus) -> Iterator[str]:
    if status.tokens_a_second is None:
        return
    about = "at most" if status.may_stop else "about"
    left = "" if status.seconds_left is None else f", {about} {span(status.seconds_left)} left"
    yield f"{status.tokens_a_second:,.0f} tokens/s{left}"
