"""Verdicts: which candidates the page says are distinguishable, and how it says it."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from kldcloud.report.html.verdicts import p_figure, ranking, verdict_list
from tests.report.summaries import as_summary, compared, summary_dict

from .documents import Node, read
from .realistic import realistic_dict, realistic_summary


def sentences(shape: dict[str, Any]) -> list[str]:
    summary = as_summary(shape)
    document = read(verdict_list(summary, summary.corpora[0]))
    return [item.text.replace("\u00a0", " ") for item in document.every("li")]


def rows(shape: dict[str, Any]) -> list[list[str]]:
    summary = as_summary(shape)
    document = read(ranking(summary, summary.comparisons[0]))
    return [
        [cell.text for cell in row.children if isinstance(cell, Node)]
        for row in document.one("tbody").every("tr")
    ]


def test_two_that_are_apart() -> None:
    assert sentences(summary_dict()) == [
        "Q8_0 is closest to the base: mean KLD 0.004065 \u00b1 0.000061 nats a token, 0.135 GiB.",
        "The two are distinguishable (at 5 %).",
    ]


def test_two_that_are_not() -> None:
    shape = summary_dict()
    shape["comparisons"] = [compared("pydoc", "Q8_0", "Q4_K_M", 0.0003, 0.41)]
    first, second, *_ = sentences(shape)
    assert first.endswith(" 0.135 GiB. 1 other may be as close.")
    assert second == (
        "Q8_0 and Q4_K_M are not distinguishable on pydoc"
        " (difference 0.00030 \u00b1 0.00010 nats, p 0.41 after Holm)."
    )


def test_the_realistic_run_names_each_undecided_pair_of_its_comparison() -> None:
    summary = realistic_summary()
    found = sentences(realistic_dict())
    undecided = [pair for pair in summary.comparisons[0].pairs if not pair.distinguishable]
    assert [(pair.better, pair.worse) for pair in undecided] == [("UD-Q4_K_XL", "Q4_K_M")]
    assert "27 of 28 pairs are distinguishable (at 5 %, adjusted for all 28 by Holm's method)." in (
        found
    )
    (verdict,) = (words for words in found if "are not distinguishable" in words)
    assert verdict == (
        "UD-Q4_K_XL and Q4_K_M are not distinguishable on wikitext-2"
        f" (difference 0.00010 \u00b1 0.00025 nats, p {undecided[0].p_holm:.2g} after Holm)."
    )
    assert found[-1] == (
        "Off the Pareto frontier, where a file no larger has a mean no higher: Q4_K_M."
    )


def test_of_a_single_chunk_nothing_can_be_told_apart() -> None:
    shape = summary_dict()
    pair = shape["comparisons"][0]["pairs"][0]
    pair.update(error=None, interval95=None, p=None, p_holm=None, distinguishable=False)
    assert "(difference 0.049670 nats, of one chunk)." in sentences(shape)[1]
    assert rows(shape)[0][3:] == ["0.049670", "-", "not distinguishable"]


def test_one_candidate_is_compared_with_nobody() -> None:
    shape = summary_dict()
    shape.update(candidates=shape["candidates"][:1], results=shape["results"][:1])
    shape["comparisons"][0].update(
        ranks=[{"candidate": "Q8_0", "low": 1, "high": 1}], pairs=[], pairs_tested=0
    )
    assert sentences(shape) == [
        "Q8_0: mean KLD 0.004065 \u00b1 0.000061 nats a token, 0.135 GiB.",
        "One candidate alone was measured: there is nothing to compare it with.",
    ]


def test_a_summary_of_an_older_kldcloud_has_no_verdicts_and_says_so() -> None:
    shape = summary_dict()
    del shape["comparisons"]
    shape["schema"] = "kldcloud.summary/1"
    assert sentences(shape)[1:] == [
        "This summary has no comparisons: kldcloud made none when it was written."
    ]


def test_failures_are_told_with_their_cause() -> None:
    assert sentences(realistic_dict(failing=True))[-1] == (
        "TQ1_0 failed: TQ1_0.gguf: the file ends inside a tensor"
    )


def test_where_only_neighbours_were_kept_that_is_said() -> None:
    shape = realistic_dict()
    comparison = shape["comparisons"][0]
    order = [rank["candidate"] for rank in comparison["ranks"]]
    neighbours = set(itertools.pairwise(order))
    comparison["pairs"] = [
        pair for pair in comparison["pairs"] if (pair["better"], pair["worse"]) in neighbours
    ]
    assert sentences(shape)[1] == (
        "6 of 7 pairs of neighbours in the ranking are distinguishable"
        " (at 5 %, adjusted for all 28 by Holm's method)."
    )
    assert all(len(row) == 6 for row in rows(shape)[:-1])


def test_many_undecided_pairs_are_counted_rather_than_listed() -> None:
    shape = realistic_dict()
    for pair in shape["comparisons"][0]["pairs"]:
        pair.update(distinguishable=False, p_holm=0.5)
    found = sentences(shape)
    assert found[1].startswith("None of 28 pairs are distinguishable")
    assert sum("are not distinguishable on" in words for words in found) == 8
    assert "20 more pairs are not distinguishable." in found


def test_the_ranking_compares_each_with_the_next() -> None:
    shape = realistic_dict()
    found = rows(shape)
    assert [row[1] for row in found] == [
        rank["candidate"] for rank in shape["comparisons"][0]["ranks"]
    ]
    assert [row[0] for row in found] == ["1", "2", "3", "4 to 5", "4 to 5", "6", "7", "8"]
    assert found[3] == [
        "4 to 5",
        "UD-Q4_K_XL",
        "0.021400 \u00b1 0.000680",
        "0.00010 \u00b1 0.00025",
        "0.69",
        "not distinguishable",
    ]
    assert found[-1] == ["8", "Q2_K", "0.171000 \u00b1 0.005070", ""]


def test_hostile_names_stay_text() -> None:
    hostile = '</li><img src=x onerror="alert(1)">\u202e'
    shape = json.loads(json.dumps(realistic_dict(failing=True)).replace("Q4_K_M", "REPLACED"))
    text = json.dumps(shape).replace("REPLACED", json.dumps(hostile)[1:-1])
    summary = as_summary(json.loads(text))
    for markup in (
        verdict_list(summary, summary.corpora[0]),
        ranking(summary, summary.comparisons[0]),
    ):
        document = read(markup)
        assert document.every("img") == []
        assert '</li><img src=x onerror="alert(1)">\\u202e' in document.text


@pytest.mark.parametrize(
    ("p", "shown"),
    [
        (None, "-"),
        (0.0, "< 0.0001"),
        (9.9e-5, "< 0.0001"),
        (0.00123, "0.0012"),
        (0.41, "0.41"),
        (0.999, "1"),
        (1.0, "1"),
    ],
)
def test_p_as_people_quote_it(p: float | None, shown: str) -> None:
    assert p_figure(p) == shown
