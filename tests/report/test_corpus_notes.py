"""The noise floor and an early stop stand below the table they belong to."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from kldcloud.errors import FormatError
from kldcloud.report.hf_card import render_hf_card
from kldcloud.report.llama_text import order_notes
from kldcloud.report.markdown import render_markdown
from kldcloud.report.reddit import render_reddit
from kldcloud.report.rounding import floor_figure
from kldcloud.report.table import corpus_tables
from kldcloud.report.terminal import print_table

from .summaries import as_summary, estimate, summary_dict


def floor(**changes: Any) -> dict[str, Any]:
    return {
        "corpus": "pydoc",
        "error": None,
        "tokens": 56100,
        "mean": estimate(2e-6, 1e-7),
        "p99.9": 1e-5,
        "maximum": 3e-5,
        "same_top": estimate(1.0, 0.0),
        **changes,
    }


def stop(**changes: Any) -> dict[str, Any]:
    return {
        "corpus": "pydoc",
        "when": "ranked",
        "half_width": None,
        "confidence": 0.95,
        "least": 20,
        "settled": True,
        "checkpoint": 3,
        "checkpoints": 12,
        "chunks": 55,
        "of": 220,
        "saved": 0.75,
        "means": [
            {"candidate": "Q8_0", "value": 0.0041, "interval": [0.0039, 0.0043]},
            {"candidate": "Q4_K_M", "value": 0.054, "interval": None},
        ],
        "order": ["Q8_0", "Q4_K_M"],
        "undecided": [],
        **changes,
    }


def texts(shape: dict[str, Any]) -> list[str]:
    """What people read and what they publish, each with its lines joined."""
    summary = as_summary(shape)
    out = io.StringIO()
    print_table(summary, Console(file=out, width=200, highlight=False))
    published = (render(summary) for render in (render_markdown, render_reddit, render_hf_card))
    return [" ".join(text.split()) for text in (out.getvalue(), *published)]


def test_means_are_told_as_multiples_of_the_floor() -> None:
    shape = {**summary_dict(), "noise_floor": [floor()]}
    (table,) = corpus_tables(as_summary(shape))
    assert [row.times_floor for row in table.rows] == pytest.approx([2032.5, 26867.5])
    *with_column, post, card = texts(shape)
    for text in (*with_column, card):
        assert "x floor" in text
        assert "26,868" in text
    for text in (*with_column, post, card):
        assert "the base measured against itself: mean KLD 2.0e-06 ± 1.0e-07." in text


@pytest.mark.parametrize(
    ("times", "shown"),
    [
        (None, "-"),
        (0.0123, "0.012"),
        (7.06, "7.1"),
        (99.4, "99"),
        (99.6, "100"),
        (2.87e11, "2.9e+11"),
    ],
)
def test_a_multiple_has_digits_enough(times: float | None, shown: str) -> None:
    assert floor_figure(times) == shown


@pytest.mark.parametrize("mean", [0.0, None])
def test_a_floor_of_nothing_divides_nothing(mean: float | None) -> None:
    shape = {**summary_dict(), "noise_floor": [floor(mean=estimate(mean, 0.0))]}
    for text in texts(shape):
        assert "x floor" not in text


def test_a_floor_that_failed_says_so() -> None:
    cause = "partials/x: out of memory\x1b[2J"
    failed = floor(mean=None, error=cause, same_top=None, tokens=0)
    for text in texts({**summary_dict(), "noise_floor": [failed]}):
        assert "The base could not be measured against itself: " in text
        assert "out of memory" in text
        assert "\x1b" not in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {},
            "stopped after 55 of 220 chunks, taken in a pseudo-random order; 75 % saved.",
        ),
        (
            {"chunks": 220, "saved": 0.0},
            "The ranking is settled with 95 % confidence whenever one stops by all 220 chunks.",
        ),
        (
            {"when": "precise", "half_width": 0.02},
            "Every mean to 2 % is settled with 95 % confidence whenever one stops: stopped after",
        ),
        (
            {"settled": False, "chunks": 220, "saved": 0.0, "undecided": [["Q8_0", "Q4_K_M"]]},
            "is not settled with 95 % confidence whenever one stops by all 220 chunks: undecided",
        ),
    ],
)
def test_a_stop_says_what_it_settles(change: dict[str, Any], said: str) -> None:
    for text in texts({**summary_dict(), "stops": [stop(**change)]}):
        assert said in text


def test_chunks_that_llama_cpp_would_not_take_are_told_of() -> None:
    early = as_summary({**summary_dict(), "stops": [stop()]})
    said = "pydoc: 55 chunks of 220 in a pseudo-random order; llama-perplexity --chunks 55 takes"
    assert [each.startswith(said) for each in order_notes(early)] == [True]
    assert not list(order_notes(early, "wiki"))
    whole = as_summary({**summary_dict(), "stops": [stop(chunks=220, saved=0.0)]})
    assert not list(order_notes(whole))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"stops": [stop(corpus="wiki")]}, "stops names an unknown corpus"),
        ({"stops": [stop(order=["Q1"])]}, 'stops[0] names an unknown candidate, "Q1"'),
        ({"stops": [stop(undecided=[["Q8_0"]])]}, "stops[0].undecided"),
        ({"noise_floor": [floor(corpus="wiki")]}, "noise_floor names an unknown corpus"),
        ({"noise_floor": [floor(), floor()]}, 'noise_floor names "pydoc" twice'),
    ],
)
def test_both_must_name_what_the_run_declares(part: dict[str, Any], said: str) -> None:
    with pytest.raises(FormatError) as caught:
        as_summary({**summary_dict(), **part})
    assert said in str(caught.value)
