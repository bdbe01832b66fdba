"""The table that a person sees when a run ends, fitted to the width of the terminal."""

from __future__ import annotations

import textwrap
from functools import partial
from typing import Final

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from kldcloud.qad.result_file import QadResult
from kldcloud.report.across_corpora import MACRO, MacroRow, macro_note, macro_rows
from kldcloud.report.corpus_notes import corpus_notes
from kldcloud.report.differences import comparisons, undecided_note
from kldcloud.report.escaping import printable
from kldcloud.report.reading import corpus_note, how_to_read, progress_note, run_warnings
from kldcloud.report.rounding import kld_with_error
from kldcloud.report.summary_shape import Summary
from kldcloud.report.table import (
    Column,
    CorpusTable,
    TableRow,
    corpus_tables,
    outcome,
    percent_figure,
    shown_columns,
)
from kldcloud.report.training_text import HEADINGS, TEXT_SHOWN, look_rows, training_sentences

# Who goes first when the terminal is narrow; the name and the exact mean always stay.
_DROP_ORDER: Final = (
    "rms_change",
    "maximum",
    "median",
    "bits",
    "floor",
    "p99",
    "llama_kld",
    "rank",
    "size",
    "ppl_ratio",
    "same_top",
    "p99_9",
)
_MACRO_HEADINGS: Final = ("mean KLD", "same top %")
_PIPED_WIDTH: Final = 120  # a pipe has no width of its own
_PROSE_WIDTH: Final = 100
_NAME_SHOWN: Final = 48
_NAME_LEAST: Final = 12
_CAUSE_SHOWN: Final = 400
_GAP: Final = "  "
_STYLES: Final = {"heading": "dim", "complete": "", "failed": "red", "missing": "dim"}
_ASCII: Final = str.maketrans({"±": "+-", "Δ": "d", "─": "-"})


def print_table(summary: Summary, console: Console) -> None:
    """Print one table a corpus, then what they come to together, failures, and how to read it.

    Columns that do not fit are left out and named below the table. A pipe gets plain text: no
    colours, no rules, and ASCII alone where the output's encoding cannot carry more.

    Args:
        summary: the run.
        console: where to print; its width decides how many columns there are.
    """
    width = _width(console)
    left_out: dict[str, str] = {}
    _emit(_heading(summary), console)
    _emit(Text(), console)
    tables = corpus_tables(summary)
    compared = comparisons(summary)
    for table in tables:
        left_out.update(_print_corpus(table, console, width))
        if (comparison := compared.get(table.corpus.name)) is not None:
            _print_note(undecided_note(comparison, _quoted), console, width)
        for sentence in corpus_notes(summary, table.corpus.name, _quoted):
            _print_note(sentence, console, width)
    _print_macro(summary, console, width)
    for warning in run_warnings(summary, _quoted):
        _print_prose(warning, console, width, style="yellow")
    for table in tables:
        _print_failures(table, console, width)
    if note := progress_note(summary):
        _print_prose(note, console, width, style="yellow")
    _print_prose(how_to_read(summary, naive_error=False), console, width, style="dim")
    if left_out:
        columns = ", ".join(left_out.values())
        _print_prose(f"Left out at this width: {columns}.", console, width, style="dim")


def print_training(result: QadResult, console: Console) -> None:
    """Print what a distillation was worth and how it went, above the table that shows it."""
    width = _width(console)
    _print_title(result.run, "", console)
    for sentence in training_sentences(result, partial(printable, limit=TEXT_SHOWN)):
        _print_prose(sentence, console, width, style="")
    rows = [HEADINGS, *look_rows(result)]
    wide = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for at, row in enumerate(rows):
        line = Text(style="" if at else "dim")
        for text, column_width in zip(row, wide, strict=True):
            _append_cell(line, text, column_width, "")
        _print_row(line, console, ruled=not at)
    _emit(Text(), console)


def print_prose(text: str, console: Console, *, style: str = "") -> None:
    """Print a sentence, folded where the lines of a table's prose are."""
    _print_prose(text, console, _width(console), style=style)


def print_text(text: str, console: Console) -> None:
    """Print lines that are laid out already, in characters that the output's encoding has."""
    for line in text.splitlines():
        _emit(Text(line), console)


def _width(console: Console) -> int:
    return console.width if console.is_terminal else max(console.width, _PIPED_WIDTH)


def _print_corpus(table: CorpusTable, console: Console, width: int) -> dict[str, str]:
    """Print one corpus's table; returns the headings that did not fit, by column key."""
    wanted = shown_columns(table.rows, naive_error=False)
    cells = {
        column.key: [column.heading, *(_cell(column, row) for row in table.rows)]
        for column in wanted
    }
    widths = {key: max(map(cell_len, texts)) for key, texts in cells.items()}
    name_limit = min(_NAME_SHOWN, max(width - widths["kld"] - len(_GAP), _NAME_LEAST))
    names = ["candidate", *(printable(row.candidate, limit=name_limit) for row in table.rows)]
    name_width = max(map(cell_len, names))
    kept = _fitting(wanted, widths, width - name_width)

    _print_title(table.corpus.name, corpus_note(table), console)
    statuses = ("heading", *(row.status for row in table.rows))
    for at, (name, status) in enumerate(zip(names, statuses, strict=True)):
        line = Text(name + " " * (name_width - cell_len(name)), style=_STYLES[status])
        for column in kept:
            style = "bold" if column.key == "kld" and status == "complete" else ""
            _append_cell(line, cells[column.key][at], widths[column.key], style)
        _print_row(line, console, ruled=status == "heading")
    _emit(Text(), console)
    return {column.key: column.heading for column in wanted if column not in kept}


def _print_macro(summary: Summary, console: Console, width: int) -> None:
    rows = macro_rows(summary)
    if not rows:
        return
    cells = [_macro_cells(row) for row in rows]
    wide = [max(map(cell_len, column)) for column in zip(_MACRO_HEADINGS, *cells, strict=True)]
    name_limit = min(_NAME_SHOWN, max(width - sum(wide) - len(wide) * len(_GAP), _NAME_LEAST))
    names = ["candidate", *(printable(row.candidate, limit=name_limit) for row in rows)]
    name_width = max(map(cell_len, names))
    _print_title(MACRO, macro_note(summary), console)
    for at, (name, texts) in enumerate(zip(names, [_MACRO_HEADINGS, *cells], strict=True)):
        line = Text(name + " " * (name_width - cell_len(name)), style="" if at else "dim")
        for text, column_width in zip(texts, wide, strict=True):
            _append_cell(line, text, column_width, "")
        _print_row(line, console, ruled=not at)
    _emit(Text(), console)


def _macro_cells(row: MacroRow) -> tuple[str, str]:
    return kld_with_error(row.kld_mean), percent_figure(row.same_top)


def _print_title(name: str, note: str, console: Console) -> None:
    title = Text(printable(name, limit=_NAME_SHOWN), style="bold")
    if note:
        title.append(f"{_GAP}{note}", style="not bold dim")
    _emit(title, console)


def _append_cell(line: Text, text: str, width: int, style: str) -> None:
    line.append(_GAP + " " * (width - cell_len(text)))
    line.append(text, style=style)


def _print_row(line: Text, console: Console, *, ruled: bool) -> None:
    _emit(line, console)
    if ruled and console.is_terminal:
        _emit(Text("─" * cell_len(line.plain), style="dim"), console)


def _heading(summary: Summary) -> Text:
    heading = Text(printable(summary.name, limit=_NAME_SHOWN), style="bold")
    facts = (summary.base.name, *(summary.engine.get(key, "") for key in ("name", "version")))
    base, engine, version = (printable(fact, limit=_NAME_SHOWN) for fact in facts)
    measured_by = f", {engine} {version}".rstrip() if engine else ""
    return heading.append(f"{_GAP}against {base}{measured_by}", style="not bold dim")


def _cell(column: Column, row: TableRow) -> str:
    return (column.key == "kld" and outcome(row)) or column.cell(row)


def _fitting(wanted: tuple[Column, ...], widths: dict[str, int], room: int) -> list[Column]:
    """Admit columns from the most to the least wanted while there is room."""
    ranked = sorted(
        wanted,
        key=lambda column: -_DROP_ORDER.index(column.key) if column.key in _DROP_ORDER else -99,
    )
    admitted = set()
    for column in ranked:
        needed = len(_GAP) + widths[column.key]
        if column.key == "kld" or needed <= room:
            admitted.add(column.key)
            room -= needed
    return [column for column in wanted if column.key in admitted]


def _print_failures(table: CorpusTable, console: Console, width: int) -> None:
    for row in table.rows:
        if row.status == "failed":
            name = printable(row.candidate, limit=_NAME_SHOWN)
            corpus = printable(table.corpus.name, limit=_NAME_SHOWN)
            cause = printable(row.failure or "", limit=_CAUSE_SHOWN)
            _print_prose(f"{name} on {corpus} failed: {cause}", console, width, style="red")


def _print_note(text: str | None, console: Console, width: int) -> None:
    """A sentence about the table above it, and a line's room before the next one."""
    if text is not None:
        _print_prose(text, console, width, style="")
        _emit(Text(), console)


def _quoted(name: str) -> str:
    return printable(name, limit=_NAME_SHOWN)


def _print_prose(text: str, console: Console, width: int, *, style: str) -> None:
    for line in textwrap.wrap(text, min(width, _PROSE_WIDTH), subsequent_indent=_GAP):
        _emit(Text(line, style=style), console)


def _emit(line: Text, console: Console) -> None:
    encoding = console.encoding
    if not encoding.startswith("utf"):
        plain = line.plain.translate(_ASCII).encode(encoding, "backslashreplace")
        line = Text(plain.decode(encoding))
    # The layout is done: rich neither wraps nor crops, and never reads a name as markup.
    console.print(line, soft_wrap=True)
