"""What is said of neighbours that the data do not tell apart, and of candidates in pairs."""

from __future__ import annotations

from itertools import pairwise

import pytest

from kldcloud.report.differences import (
    comparisons,
    find_pair,
    interval_figure,
    neighbours,
    p_figure,
    rank_figure,
    undecided_note,
    verdict,
)
from kldcloud.report.summary_shape import Comparison, Rank

from .compared import compared_run
from .summaries import as_summary

CLOSE = {"wikitext-2": {"Q8_0": 0.001, "Q4_K_M": 0.05, "UD-Q4_K_XL": 0.05, "Q2_K": 0.3}}


def compared(levels: dict[str, dict[str, float]] = CLOSE) -> Comparison:
    (found,) = comparisons(as_summary(compared_run(levels))).values()
    return found


def plain(name: str) -> str:
    return name


def test_a_note_names_the_neighbours_that_are_not_distinguishable_and_no_others() -> None:
    comparison = compared()
    note = undecided_note(comparison, plain)
    assert note is not None
    (pair,) = (each for each in neighbours(comparison) if not each.distinguishable)
    assert {pair.better, pair.worse} == {"Q4_K_M", "UD-Q4_K_XL"}
    assert note == (
        f"Not distinguishable on wikitext-2: {pair.better} and {pair.worse}"
        f" (difference {pair.difference:.6f} ± {pair.error:.6f},"
        f" p {pair.p_holm:.2g} after Holm over 6 pairs)."
    )


def test_there_is_no_note_where_all_neighbours_are_told_apart() -> None:
    apart = {"text": {"a": 0.1, "b": 0.2, "c": 0.3}}
    assert undecided_note(compared(apart), plain) is None


def test_a_note_stays_short_however_many_there_are() -> None:
    same = {"text": dict.fromkeys("abcdefgh", 0.1)}
    note = undecided_note(compared(same), plain)
    assert note is not None
    assert note.count("difference") == 3
    assert note.count("after Holm over 28 pairs") == 1
    assert note.endswith("; and 4 more pairs of neighbours.")


def test_a_single_pair_needs_no_adjustment_and_a_single_chunk_gives_no_p() -> None:
    shape = compared_run({"text": {"a": 0.1, "b": 0.1}})
    assert "Holm" not in str(undecided_note(as_summary(shape).comparisons[0], plain))
    (pair,) = shape["comparisons"][0]["pairs"]
    pair |= {"error": None, "interval95": None, "p": None, "p_holm": None}
    note = str(undecided_note(as_summary(shape).comparisons[0], plain))
    assert note.endswith(f"(difference {pair['difference']:.6f}, no p from so few chunks).")


def test_neighbours_follow_the_ranks() -> None:
    comparison = compared()
    order = [rank.candidate for rank in comparison.ranks]
    assert order[0] == "Q8_0"
    assert order[-1] == "Q2_K"
    pairs = [(pair.better, pair.worse) for pair in neighbours(comparison)]
    assert pairs == list(pairwise(order))


def test_neighbours_whose_pair_is_missing_are_passed_over() -> None:
    shape = compared_run(CLOSE)
    gone = shape["comparisons"][0]["pairs"].pop(0)
    comparison = as_summary(shape).comparisons[0]
    assert gone["better"] not in {pair.better for pair in neighbours(comparison)}
    assert len(neighbours(comparison)) == 2


def test_a_pair_is_found_from_either_end() -> None:
    comparison = compared()
    one = find_pair(comparison, "Q2_K", "Q8_0")
    assert one is not None
    assert (one.better, one.worse) == ("Q8_0", "Q2_K")
    assert one == find_pair(comparison, "Q8_0", "Q2_K")
    assert verdict(one) == "distinguishable"
    assert one.interval95 is not None
    low, high = one.interval95
    assert interval_figure(one) == f"{low:.6f} to {high:.6f}"
    assert find_pair(comparison, "Q2_K", "Q2_K") is None


def test_a_lone_candidate_is_compared_with_nothing() -> None:
    assert comparisons(as_summary(compared_run({"text": {"a": 0.1}}))) == {}


@pytest.mark.parametrize(
    ("low", "high", "shown"), [(1, 1, "1"), (2, 3, "2-3"), (1, 1200, "1-1,200")]
)
def test_ranks_are_written_as_people_say_them(low: int, high: int, shown: str) -> None:
    assert rank_figure(Rank(candidate="a", low=low, high=high)) == shown


@pytest.mark.parametrize(
    ("p", "shown"), [(None, "-"), (0.413, "0.41"), (1.0, "1"), (0.0, "0"), (1.23e-9, "1.2e-09")]
)
def test_p_values_have_two_digits(p: float | None, shown: str) -> None:
    assert p_figure(p) == shown
