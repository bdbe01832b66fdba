"""`--pair`: two candidates held against each other, or a line that says why not."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from kldcloud.errors import UserError
from kldcloud.report.pair_text import render_pair

from .compared import compared_run
from .summaries import as_summary, failed, rename

TWO = {
    "wikitext-2": {"Q8_0": 0.001, "Q4_K_M": 0.05, "UD-Q4": 0.05},
    "code": {"Q8_0": 0.001, "Q4_K_M": 0.09, "UD-Q4": 0.05},
}


def shown(shape: Any, one: str, other: str) -> str:
    return render_pair(as_summary(shape), one, other)


def kept(shape: Any, corpus: int, one: str, other: str) -> Any:
    pairs = shape["comparisons"][corpus]["pairs"]
    return next(pair for pair in pairs if {pair["better"], pair["worse"]} == {one, other})


def paragraph(pair: Any, heading: str, verdict: str) -> str:
    low, high = pair["interval95"]
    return (
        f"{heading}\n"
        f"  difference    {pair['difference']:.6f} ± {pair['error']:.6f} nats a token of mean KLD,"
        " chunk by chunk\n"
        f"  95 % interval {low:.6f} to {high:.6f}, of this pair alone\n"
        f"  p             {pair['p_holm']:.2g} after Holm over 3 pairs; {pair['p']:.2g} alone\n"
        f"  verdict       {verdict}\n"
    )


def test_a_pair_is_shown_on_every_corpus_the_better_one_first() -> None:
    shape = compared_run(TWO)
    first, second = (kept(shape, at, "UD-Q4", "Q4_K_M") for at in (0, 1))
    assert not first["distinguishable"]
    assert second["distinguishable"]
    open_pair = f"wikitext-2: {first['better']} ~ {first['worse']}"
    text = shown(shape, "UD-Q4", "Q4_K_M")
    assert text == "\n".join(
        [
            paragraph(first, open_pair, "not distinguishable"),
            paragraph(second, "code: UD-Q4 < Q4_K_M", "distinguishable"),
        ]
    )
    assert text == shown(shape, "Q4_K_M", "UD-Q4")


def test_a_pair_need_not_be_neighbours() -> None:
    assert "code: Q8_0 < Q4_K_M\n" in shown(compared_run(TWO), "Q4_K_M", "Q8_0")


def test_a_corpus_without_one_of_them_says_so() -> None:
    shape = compared_run({**TWO, "code": {"Q8_0": 0.001, "Q4_K_M": 0.09}})
    shape["results"].append(failed("UD-Q4", "code", "ends early"))
    text = shown(shape, "UD-Q4", "Q8_0")
    assert text.endswith("\n\nUD-Q4 and Q8_0 on code: UD-Q4 was not measured there\n")
    assert text.startswith("wikitext-2: Q8_0 < UD-Q4\n")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("Q9\x1b", "Q8_0"), 'no candidate "Q9\\x1b" in this run; it has: Q8_0, Q4_K_M, UD-Q4'),
        (("Q8_0", "q8_0"), 'no candidate "q8_0" in this run; it has: Q8_0, Q4_K_M, UD-Q4'),
        (("Q8_0", "Q8_0"), "a pair is two candidates, not Q8_0 twice; name another"),
    ],
)
def test_what_is_no_pair_of_the_run_is_refused(names: tuple[str, str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        shown(compared_run(TWO), *names)
    assert str(caught.value) == said


def test_a_summary_that_kept_neighbours_alone_says_so() -> None:
    names = [f"q{number:02}" for number in range(65)]
    shape = compared_run({"text": {name: 0.01 * at for at, name in enumerate(names)}})
    (comparison,) = shape["comparisons"]
    following = set(pairwise(names))
    comparison["pairs"] = [
        pair for pair in comparison["pairs"] if (pair["better"], pair["worse"]) in following
    ]
    assert "text: q03 < q04\n" in shown(shape, "q04", "q03")
    with pytest.raises(UserError) as caught:
        shown(shape, "q03", "q07")
    assert str(caught.value) == (
        "q03 and q07 on text: not kept, for of so many candidates (65) a summary has neighbours'"
        " pairs alone; kldcloud compare RUN works pairs out again, from what the run measured"
    )


def test_a_summary_of_an_older_version_holds_no_pairs() -> None:
    shape = compared_run({"text": TWO["code"]})
    del shape["comparisons"]
    shape["schema"] = "kldcloud.summary/1"
    with pytest.raises(UserError, match="this summary holds no comparison; kldcloud compare"):
        shown(shape, "Q8_0", "UD-Q4")


def test_a_hostile_name_stays_one_line_of_text() -> None:
    shape = compared_run(TWO)
    hostile = "\x1b]0;owned\x07\nQ8_0 < all"
    rename(shape, "Q8_0", hostile)
    text = shown(shape, hostile, "UD-Q4")
    assert text.startswith("wikitext-2: \\x1b]0;owned\\x07\\nQ8_0 < all < UD-Q4\n")
    assert "\x1b" not in text
    assert len(text.splitlines()) == 11
