"""report.csv: every number in full, one line a measurement, nothing that a spreadsheet runs."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from kldcloud.report.csv_table import render_csv

from .compared import compared_run
from .summaries import (
    CHANGE_QUANTILES,
    QUANTILES,
    as_summary,
    candidate,
    corpus,
    failed,
    measured,
    rename,
    result,
    summary_dict,
)


def rows(shape: dict[str, Any]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(render_csv(as_summary(shape)))))


def test_every_statistic_is_there_to_the_last_bit() -> None:
    shape = summary_dict()
    found = shape["results"][1]["result"]
    row = rows(shape)[1]
    assert float(row["kld_mean"]) == found["kld"]["mean"]["value"]
    assert float(row["kld_mean_error_naive"]) == found["kld"]["mean"]["error_naive"]
    assert float(row["kld_mean_error"]) == found["kld"]["mean"]["error"]
    low, high = found["kld"]["mean"]["interval95"]
    assert (float(row["kld_mean_low95"]), float(row["kld_mean_high95"])) == (low, high)
    for quantile in QUANTILES:
        column = quantile.replace(".", "_")
        assert float(row[f"kld_{column}"]) == found["kld"][quantile]
        assert float(row[f"llama_kld_{column}"]) == found["llama"]["kld"][quantile]
    for quantile in CHANGE_QUANTILES:
        column = quantile.replace(".", "_")
        assert float(row[f"probability_change_{column}"]) == found["probability_change"][quantile]
        assert float(row[f"llama_dp_{column}"]) == found["llama"]["dp"][quantile]
    assert float(row["same_top"]) == found["same_top"]["value"]
    assert float(row["perplexity_log_ratio"]) == found["perplexity"]["log_ratio"]["value"]
    pair = [float(row["llama_kld_mean"]), float(row["llama_kld_mean_error"])]
    assert pair == found["llama"]["kld_mean"]
    assert row["kld_quantiles"] == "exact"
    assert (row["chunks"], row["tokens"]) == ("220", "56100")


def test_a_row_says_what_it_is_a_measurement_of() -> None:
    row = rows(summary_dict())[0]
    assert row["run"] == "3f9ac1d2e4b5"
    assert (row["corpus"], row["context"]) == ("pydoc", "512")
    assert (row["candidate"], row["file"]) == ("Q8_0", "smollm2-135m-q8_0.gguf")
    assert (row["bytes"], row["bits_per_weight"]) == ("144811008", "8.51")
    assert (row["base"], row["engine_version"]) == ("smollm2-f16", "0.3.36")
    assert row["status"] == "complete"


def test_headings_are_distinct_plain_words() -> None:
    headings = render_csv(as_summary(summary_dict())).splitlines()[0].split(",")
    assert len(set(headings)) == len(headings)
    assert all(heading.isidentifier() and heading.islower() for heading in headings)


def test_there_is_a_row_for_each_pair_whatever_became_of_it() -> None:
    shape = summary_dict()
    shape["corpora"].append(corpus("chat"))
    shape["candidates"].append(candidate("Q2_K", 1, 2.0))
    shape["results"].append(failed("Q2_K", "pydoc", "ends early"))
    shape["results"].append(measured("Q8_0", "chat", result(0.1, None, llama=False)))
    found = rows(shape)
    assert [row["status"] for row in found] == [
        *("complete", "complete", "failed"),
        *("complete", "missing", "missing"),
        *("", "", ""),  # over both corpora
    ]
    assert (found[2]["failure"], found[2]["kld_mean"]) == ("ends early", "")
    one_chunk = found[3]
    assert (one_chunk["kld_mean"], one_chunk["kld_mean_error"]) == ("0.1", "")
    assert (one_chunk["kld_mean_low95"], one_chunk["llama_kld_mean"]) == ("", "")


def test_hostile_names_stay_text_on_one_line() -> None:
    shape = summary_dict()
    hostile = '=HYPERLINK("http://x","y")\r\n\x1b[2J,"'
    rename(shape, "Q8_0", hostile)
    text = render_csv(as_summary(shape))
    assert len(text.splitlines()) == 3
    assert "\x1b" not in text
    row = rows(shape)[0]
    assert row["candidate"] == '\'=HYPERLINK("http://x","y")\\r\\n\\x1b[2J,"'
    assert float(row["kld_mean"]) == 0.004065


def test_negative_numbers_stay_numbers() -> None:
    assert rows(summary_dict())[0]["probability_change_minimum"] == "-0.9"


def test_ranks_are_two_numbers() -> None:
    found = rows(compared_run({"text": {"Q8_0": 0.001, "Q4_K_M": 0.05, "UD-Q4": 0.05}}))
    ranks = [(row["candidate"], row["rank_low"], row["rank_high"]) for row in found]
    assert ranks == [("Q8_0", "1", "1"), ("Q4_K_M", "2", "3"), ("UD-Q4", "2", "3")]
    (lone,) = rows(compared_run({"text": {"Q8_0": 0.001}}))
    assert (lone["rank_low"], lone["rank_high"]) == ("", "")


def test_several_corpora_end_in_their_macro_average() -> None:
    shape = compared_run({"wiki": {"a": 0.01, "b": 0.05}, "code": {"a": 0.09, "b": 0.05}})
    found = rows(shape)
    last = found[-2:]
    assert [(row["corpus"], row["candidate"]) for row in last] == [
        ("macro average", "a"),
        ("macro average", "b"),
    ]
    for row in last:
        mine = [each for each in found[:-2] if each["candidate"] == row["candidate"]]
        for column in ("kld_mean", "same_top"):
            mean = sum(float(each[column]) for each in mine) / 2
            error = sum(float(each[f"{column}_error"]) ** 2 for each in mine) ** 0.5 / 2
            assert float(row[column]) == pytest.approx(mean, rel=1e-12)
            assert float(row[f"{column}_error"]) == pytest.approx(error, rel=1e-12)
        assert {row[column] for column in ("status", "context", "kld_median")} == {""}
