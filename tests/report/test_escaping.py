"""Hostile names come out as one honest line in every format."""

from __future__ import annotations

import pytest

from kldcloud.report.escaping import csv_text, markdown_code, markdown_code_cell, printable


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("Q4_K_M", "Q4_K_M"),
        ("größe-日本", "größe-日本"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("gpj.\u202egguf", "gpj.\\u202egguf"),
        ("a\u2028b\u200b", "a\\u2028b\\u200b"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_cannot_be_seen_is_written_as_an_escape(hostile: str, shown: str) -> None:
    assert printable(hostile) == shown


def test_a_long_name_keeps_both_ends() -> None:
    assert printable("start" + "x" * 1000 + "end", limit=12) == "start...xend"
    assert len(printable("é" * 500, limit=40)) == 40
    assert printable("x" * 40, limit=40) == "x" * 40


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("Q4_K_M", "`Q4_K_M`"),
        ("a`b", "``a`b``"),
        ("`", "`` ` ``"),
        ("a``b`", "``` a``b` ```"),
        ("<img src=x> @user [x](y)", "`<img src=x> @user [x](y)`"),
        ("a|b\n| c |", "`a|b\\n| c |`"),
    ],
)
def test_markdown_names_stay_inside_their_code_span(hostile: str, shown: str) -> None:
    assert markdown_code(hostile) == shown


def test_a_pipe_does_not_end_a_table_cell() -> None:
    assert markdown_code_cell("a|b\\|c") == "`a\\|b\\\\|c`"


@pytest.mark.parametrize(
    "formula",
    ['=cmd|"/c calc"!A1', "+1", "-2+3", "@SUM(A1)", " =1", "\uff1d1"],
)
def test_a_formula_is_disarmed_in_csv(formula: str) -> None:
    assert csv_text(formula) == f"'{formula}"


@pytest.mark.parametrize("name", ["Q4_K_M", "", "a=b", "1-2"])
def test_an_honest_name_is_left_alone_in_csv(name: str) -> None:
    assert csv_text(name) == name
