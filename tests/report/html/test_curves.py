"""What charts of curves call candidates, and whom they show first."""

from __future__ import annotations

import itertools

import pytest

from kldcloud.report.html.curves import MOST_AT_ONCE, shown_first
from kldcloud.report.html.shown_names import shown_names


@pytest.mark.parametrize(
    "names",
    [
        ["a" * 400 + "x" + "a" * 400, "a" * 400 + "y" + "a" * 400, "a" * 20],
        ["b", "b\u200b", "b\\u200b", "b\\u200b #2"],
        ["c #2", "c" * 1, "c\x00", "__proto__", "constructor"],
        ["same" * 10] + [f"{'same' * 5}{at}{'same' * 5}" for at in range(30)],
    ],
)
def test_no_two_names_look_alike(names: list[str]) -> None:
    shown = shown_names(names, limit=20)
    assert len(set(shown)) == len(names)
    assert all(name.isprintable() and len(name) <= 26 for name in shown)


def test_a_short_name_is_shown_as_it_is() -> None:
    assert shown_names(["Q8_0", "UD-Q4_K_XL"], limit=20) == ["Q8_0", "UD-Q4_K_XL"]


def test_few_candidates_are_all_shown() -> None:
    names = [f"q{at}" for at in range(MOST_AT_ONCE)]
    assert shown_first(names, names[::-1]) == tuple(names)


def test_of_many_the_best_the_worst_and_some_between_are_shown() -> None:
    names = [f"q{at}" for at in range(100)]
    ranked = names[::-1]
    shown = shown_first(names, ranked)
    assert len(shown) == MOST_AT_ONCE
    assert {"q0", "q99"} <= set(shown)
    assert list(shown) == [name for name in names if name in shown]
    places = [names.index(name) for name in shown]
    gaps = [after - before for before, after in itertools.pairwise(places)]
    assert max(gaps) - min(gaps) <= 1


def test_those_without_a_rank_come_last() -> None:
    names = ["lost", *(f"q{at}" for at in range(20))]
    assert "q0" in shown_first(names, names[1:])
    assert "lost" in shown_first(names, names[1:])
