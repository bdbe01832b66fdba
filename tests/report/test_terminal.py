"""The terminal's table: readable at any width, plain in a pipe, deaf to escape sequences."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from kldcloud.report.terminal import print_table

from .compared import compared_run
from .summaries import as_summary, candidate, failed, measured, rename, result, summary_dict


def on_terminal(shape: dict[str, Any], width: int) -> str:
    """What a terminal of that width receives, without rich's own colour codes."""
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system="standard")
    print_table(as_summary(shape), console)
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())


def piped(shape: dict[str, Any], encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding=encoding, newline="\n") as out:
        print_table(as_summary(shape), Console(file=out, width=80, color_system=None))
        out.flush()
        return raw.getvalue().decode(encoding)


def ragged_run() -> dict[str, Any]:
    shape = summary_dict()
    shape["status"] = "partial"
    for name in ("UD-Q3_K_XL-imatrix", "Q2_K", "TQ1_0"):
        shape["candidates"].append(candidate(name, 6 * 2**30, 3.0))
    shape["results"].append(measured("UD-Q3_K_XL-imatrix", "pydoc", result(1.2, 0.02)))
    shape["results"].append(failed("Q2_K", "pydoc", "q2.gguf: the file ends inside a tensor"))
    return shape


@pytest.mark.parametrize("width", [60, 80, 100, 110, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    text = on_terminal(ragged_run(), width)
    assert max(cell_len(line) for line in text.splitlines()) <= width


@pytest.mark.parametrize("width", [60, 80, 110, 200])
def test_names_and_exact_means_stay_at_any_width(width: int) -> None:
    text = on_terminal(ragged_run(), width)
    for name in ("Q8_0", "Q4_K_M", "UD-Q3_K_XL-imatrix"):
        assert re.search(rf"^{name} .*\d\.\d{{6}} ± \d\.\d{{6}}", text, re.MULTILINE)
    assert re.search(r"^Q2_K .* failed", text, re.MULTILINE)
    assert re.search(r"^TQ1_0 .* not measured yet", text, re.MULTILINE)


def test_110_columns_hold_both_means_the_tail_and_the_ratio() -> None:
    text = on_terminal(summary_dict(), 110)
    heading = next(line for line in text.splitlines() if line.startswith("candidate"))
    assert re.split(" {2,}", heading) == [
        *("candidate", "rank", "GiB", "mean KLD", "llama.cpp's", "99 %", "99.9 %"),
        *("same top %", "PPL ratio"),
    ]
    assert "Left out at this width: bpw, median, max, RMS Δp %." in text


def test_a_wide_terminal_leaves_nothing_out() -> None:
    text = on_terminal(summary_dict(), 200)
    assert "Left out" not in text
    assert "RMS Δp %" in text


def test_columns_line_up() -> None:
    lines = on_terminal(ragged_run(), 120).splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("candidate"))
    table = [lines[first], *lines[first + 2 : first + 7]]
    assert len({cell_len(line) for line in table}) == 1


def test_failures_are_explained_below_the_table() -> None:
    text = on_terminal(ragged_run(), 120)
    assert "\nQ2_K on pydoc failed: q2.gguf: the file ends inside a tensor\n" in text
    assert "Partial run: 3 of 5 measurements are complete." in text


def test_a_pipe_gets_plain_text_of_a_steady_width() -> None:
    text = piped(ragged_run())
    assert "\x1b" not in text
    assert "─" not in text
    assert re.search(r"^Q4_K_M .*1\.0381 ± 0\.0034$", text, re.MULTILINE)


def test_an_ascii_pipe_gets_ascii() -> None:
    shape = ragged_run()
    shape["name"] = "größe"
    text = piped(shape, encoding="ascii")
    assert text.startswith("gr\\xf6\\xdfe")
    assert "0.053735 +- 0.000810" in text


def test_a_hostile_name_reaches_no_terminal() -> None:
    shape = summary_dict()
    hostile = "\x1b]0;owned\x07[bold]x[/nope]\n" + "y" * 300
    shape["name"] = shape["base"]["name"] = hostile
    rename(shape, "Q8_0", hostile)
    rename(shape, "pydoc", hostile)
    text = on_terminal(shape, 110)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\\x1b]0;owned\\x07" in text
    assert re.search(r"^\\x1b]0;.*0\.004065 ± 0\.000061", text, re.MULTILINE)
    assert max(cell_len(line) for line in text.splitlines() if " ± " in line) <= 110


def test_wide_characters_do_not_push_columns_out_of_line() -> None:
    shape = summary_dict()
    rename(shape, "Q8_0", "量子化八")
    lines = on_terminal(shape, 110).splitlines()
    first, second = (line for line in lines if " ± " in line and "0.0" in line)
    assert cell_len(first) == cell_len(second)


CLOSE = {"wikitext-2": {"Q8_0": 0.001, "Q4_K_M": 0.05, "UD-Q4_K_XL": 0.05, "Q2_K": 0.3}}


def test_ranks_stand_beside_the_names() -> None:
    text = on_terminal(compared_run(CLOSE), 120)
    assert re.search(r"^candidate +rank +GiB ", text, re.MULTILINE)
    found = re.findall(r"^(\S+) +(\d|\d-\d) .* ± ", text, re.MULTILINE)
    assert found == [("Q8_0", "1"), ("Q4_K_M", "2-3"), ("UD-Q4_K_XL", "2-3"), ("Q2_K", "4")]


def test_a_narrow_terminal_keeps_ranks_longer_than_sizes_of_weights() -> None:
    def headings(width: int) -> str:
        lines = on_terminal(compared_run(CLOSE), width).splitlines()
        return next(line for line in lines if line.startswith("candidate"))

    assert "rank" in headings(108)
    assert "bpw" not in headings(108)
    assert "rank" not in headings(60)
    assert "99.9 %" in headings(60)


def test_one_line_below_the_table_names_neighbours_that_cannot_be_told_apart() -> None:
    text = on_terminal(compared_run(CLOSE), 120)
    (line,) = (line for line in text.splitlines() if line.startswith("Not distinguishable"))
    assert re.match(r"Not distinguishable on wikitext-2: \S+ and \S+ \(difference 0\.0", line)
    apart = compared_run({"text": {"a": 0.1, "b": 0.2}})
    assert "distinguishable" not in on_terminal(apart, 120)


def test_a_lone_candidate_has_no_rank_and_no_line() -> None:
    text = on_terminal(compared_run({"text": {"Q8_0": 0.001}}), 120)
    assert re.search(r"^candidate +GiB ", text, re.MULTILINE)
    assert "distinguishable" not in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_several_corpora_end_in_their_macro_average(width: int) -> None:
    shape = compared_run({"wiki": {"a": 0.01, "b": 0.05}, "code": {"a": 0.09, "b": 0.05}})
    text = on_terminal(shape, width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    macro = text[text.index("macro average  over 2 corpora, with equal weights") :]
    means = [
        each["result"]["kld"]["mean"]["value"]
        for each in shape["results"]
        if each["candidate"] == "b"
    ]
    assert re.search(rf"^b +{sum(means) / 2:.6f} ± 0\.\d{{6}}  88\.62 ± ", macro, re.MULTILINE)
    assert "rank depends on the text: a is 1 on wiki and 2 on code" in macro
    assert "macro" not in on_terminal(summary_dict(), width)


def test_an_ascii_pipe_gets_notes_in_ascii() -> None:
    text = piped(compared_run(CLOSE), encoding="ascii")
    assert re.search(r"\(difference 0\.0\d+ \+- 0\.0\d+, p ", text)


def test_a_hostile_name_reaches_no_terminal_in_a_note() -> None:
    shape = compared_run({"wiki": {"a": 0.05, "b": 0.05}, "code": {"a": 0.05, "b": 0.05}})
    for name in ("a", "wiki"):
        rename(shape, name, f"\x1b]0;owned\x07\n{name}")
    text = on_terminal(shape, 120)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "Not distinguishable on \\x1b]0;owned\\x07\\nwiki: " in text
