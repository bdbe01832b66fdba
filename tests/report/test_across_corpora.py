"""What several corpora say together: equal weights, and ranks that exclude each other."""

from __future__ import annotations

import numpy as np
import pytest

from kldcloud.report.across_corpora import macro_rows, rank_warnings
from kldcloud.report.rounding import Measured

from .compared import compared_run
from .summaries import as_summary, failed

TWO = {
    "wikitext-2": {"Q8_0": 0.001, "Q4_K_M": 0.05, "UD-Q4": 0.08},
    "code": {"Q8_0": 0.001, "Q4_K_M": 0.09, "UD-Q4": 0.05},
}


def plain(name: str) -> str:
    return name


def test_the_macro_average_weighs_corpora_alike() -> None:
    shape = compared_run(TWO)
    rows = macro_rows(as_summary(shape))
    assert [row.candidate for row in rows] == ["Q8_0", "Q4_K_M", "UD-Q4"]
    for row in rows:
        found = [each["result"] for each in shape["results"] if each["candidate"] == row.candidate]
        kld = [each["kld"]["mean"] for each in found]
        top = [each["same_top"] for each in found]
        values = np.array([[each["value"] for each in kld], [each["value"] for each in top]])
        errors = np.array([[each["error"] for each in kld], [each["error"] for each in top]])
        error = np.sqrt(np.sum(errors**2, axis=1)) / 2
        assert row.kld_mean.value == pytest.approx(values[0].mean(), rel=1e-12)
        assert row.kld_mean.error == pytest.approx(error[0], rel=1e-12)
        assert row.same_top.value == pytest.approx(100 * values[1].mean(), rel=1e-12)
        assert row.same_top.error == pytest.approx(100 * error[1], rel=1e-12)


def test_errors_of_two_cuts_of_one_text_add_up() -> None:
    shape = compared_run(TWO)
    for corpus in shape["corpora"]:
        corpus["sha256"] = "c" * 64
    found = [each["result"] for each in shape["results"] if each["candidate"] == "Q8_0"]
    row = macro_rows(as_summary(shape))[0]
    errors = [each["kld"]["mean"]["error"] for each in found]
    assert row.kld_mean.error == pytest.approx(sum(errors) / 2, rel=1e-12)


def test_one_corpus_has_no_macro_average() -> None:
    assert macro_rows(as_summary(compared_run({"text": TWO["code"]}))) == ()


def test_a_candidate_that_failed_somewhere_has_no_macro_average() -> None:
    shape = compared_run(TWO)
    shape["results"] = [
        failed("Q4_K_M", "code", "ends early")
        if (each["candidate"], each["corpus"]) == ("Q4_K_M", "code")
        else each
        for each in shape["results"]
    ]
    rows = {row.candidate: row for row in macro_rows(as_summary(shape))}
    assert rows["Q4_K_M"].kld_mean == rows["Q4_K_M"].same_top == Measured(None, None)
    assert rows["Q8_0"].kld_mean.value is not None


def test_ranks_that_exclude_each_other_are_warned_of() -> None:
    assert rank_warnings(as_summary(compared_run(TWO)), plain) == (
        "rank depends on the text: Q4_K_M is 2 on wikitext-2 and 3 on code",
        "rank depends on the text: UD-Q4 is 2 on code and 3 on wikitext-2",
    )


def test_ranks_that_may_agree_are_not() -> None:
    close = {"wikitext-2": TWO["wikitext-2"], "code": {**TWO["code"], "Q4_K_M": 0.05}}
    assert rank_warnings(as_summary(compared_run(close)), plain) == ()
    assert rank_warnings(as_summary(compared_run({"text": TWO["code"]})), plain) == ()


def test_ranks_among_different_candidates_are_not_held_against_each_other() -> None:
    fewer = {"wikitext-2": TWO["wikitext-2"], "code": {"Q4_K_M": 0.09, "UD-Q4": 0.2}}
    assert rank_warnings(as_summary(compared_run(fewer)), plain) == ()


def test_of_three_corpora_those_furthest_apart_are_named() -> None:
    levels = {
        "a": {"x": 0.01, "y": 0.05, "z": 0.1},
        "b": {"x": 0.07, "y": 0.05, "z": 0.1},
        "c": {"x": 0.2, "y": 0.05, "z": 0.1},
    }
    warnings = rank_warnings(as_summary(compared_run(levels)), plain)
    assert warnings[0] == "rank depends on the text: x is 1 on a and 3 on c"


def test_warnings_stay_few() -> None:
    names = [f"q{number:02}" for number in range(20)]
    levels = {
        "a": {name: 0.01 * at for at, name in enumerate(names)},
        "b": {name: 0.01 * (20 - at) for at, name in enumerate(names)},
    }
    warnings = rank_warnings(as_summary(compared_run(levels)), plain)
    assert len(warnings) == 6
    assert warnings[-1] == "rank depends on the text for 15 more candidates"
