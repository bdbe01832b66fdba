"""The shared rows: what every rendering shows of a measurement."""

from __future__ import annotations

import pytest

from kldcloud.report.rounding import Measured
from kldcloud.report.table import COLUMNS, corpus_tables, percent_figure, shown_columns

from .summaries import as_summary, candidate, corpus, failed, measured, result, summary_dict


def test_a_row_holds_the_published_numbers() -> None:
    (table,) = corpus_tables(as_summary(summary_dict()))
    row = table.rows[1]
    assert (row.candidate, row.status, row.failure) == ("Q4_K_M", "complete", None)
    assert row.gib == 105454400 / 2**30
    assert row.bits_per_weight == 6.27
    assert row.kld_mean == Measured(0.053735, 0.00081)
    assert row.llama_kld_mean == Measured(0.053735 * 0.998, 0.00081 / 2)
    assert row.kld_p99_9 == 0.053735 * 24.0
    assert row.same_top.value == pytest.approx(88.617)
    assert row.same_top.error == pytest.approx(0.26)
    assert row.rms_change.value == pytest.approx(5.83)
    assert row.ppl_ratio == Measured(1.03812, 0.0034)


def test_a_share_of_all_or_none_claims_no_error_of_zero() -> None:
    assert percent_figure(Measured(100.0, 0.0)) == "100.00"
    assert percent_figure(Measured(0.0, 0.0)) == "0.00"
    assert percent_figure(Measured(50.0, 0.0)) == "50.00 ± 0.00"
    assert percent_figure(Measured(99.98, 0.02)) == "99.980 ± 0.020"


def test_a_row_shows_a_file_but_never_where_it_lay() -> None:
    (table,) = corpus_tables(as_summary(summary_dict()))
    assert [row.file for row in table.rows] == [
        "smollm2-135m-q8_0.gguf",
        "smollm2-135m-q4_k_m.gguf",
    ]


def test_every_candidate_has_a_row_on_every_corpus_in_the_jobs_order() -> None:
    shape = summary_dict()
    shape["corpora"].append(corpus("chat"))
    shape["results"].reverse()
    shape["results"].append(measured("Q4_K_M", "chat", result(0.1, 0.01)))
    tables = corpus_tables(as_summary(shape))
    statuses = [
        (table.corpus.name, row.candidate, row.status) for table in tables for row in table.rows
    ]
    assert statuses == [
        ("pydoc", "Q8_0", "complete"),
        ("pydoc", "Q4_K_M", "complete"),
        ("chat", "Q8_0", "missing"),
        ("chat", "Q4_K_M", "complete"),
    ]


def test_a_failed_row_has_its_cause_and_no_statistics() -> None:
    shape = summary_dict()
    shape["candidates"].append(candidate("Q2_K", 1, 2.0))
    shape["results"].append(failed("Q2_K", "pydoc", "file ends early"))
    row = corpus_tables(as_summary(shape))[0].rows[2]
    assert (row.status, row.failure) == ("failed", "file ends early")
    shown = {column.heading: column.cell(row) for column in COLUMNS}
    assert shown.pop("GiB") == "1 B"
    assert shown.pop("bpw") == "2.00"
    assert set(shown.values()) == {"-"}


def test_without_llama_statistics_their_column_goes() -> None:
    shape = summary_dict()
    shape["results"] = [measured("Q8_0", "pydoc", result(0.004, 0.0001, llama=False))]
    (table,) = corpus_tables(as_summary(shape))
    shown = {column.key for column in shown_columns(table.rows)}
    assert {column.key for column in COLUMNS} - shown == {"llama_kld", "floor"}
