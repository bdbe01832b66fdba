"""The block of `llama-perplexity --kl-divergence`, from a summary."""

from __future__ import annotations

import pytest

from kldcloud.errors import UserError
from kldcloud.report.llama_text import render_llama

from .summaries import as_summary, candidate, corpus, failed, measured, result, summary_dict

FIRST_LINE = "====== Perplexity statistics ======"


def test_one_candidate_gives_the_bare_block() -> None:
    text = render_llama(as_summary(summary_dict()), candidate="Q4_K_M")
    lines = text.splitlines()
    assert lines[0] == FIRST_LINE
    assert lines[1] == "Mean PPL(Q)                   :  15.500000 ±   0.200000"
    assert "Mean    KLD:   0.053628 ±   0.000405" in lines
    assert "99.9%   KLD:   1.287061" in lines
    assert lines[-1] == "Same top p: 88.620 ± 0.130 %"
    assert text.endswith("%\n")


def test_several_candidates_are_told_apart() -> None:
    text = render_llama(as_summary(summary_dict()))
    assert text.startswith(f"Q8_0 on pydoc:\n{FIRST_LINE}\n")
    assert f"\n\nQ4_K_M on pydoc:\n{FIRST_LINE}\n" in text
    alone = render_llama(as_summary(summary_dict()), candidate="Q8_0", corpus="pydoc")
    assert text.count(alone) == 1


def test_a_corpus_can_be_chosen() -> None:
    shape = summary_dict()
    shape["corpora"].append(corpus("chat"))
    shape["results"].append(measured("Q8_0", "chat", result(0.25, 0.01)))
    text = render_llama(as_summary(shape), corpus="chat")
    assert text.startswith(FIRST_LINE)
    assert "Mean    KLD:   0.249500 ±   0.005000" in text


def test_a_null_uncertainty_prints_as_the_tool_prints_it() -> None:
    shape = summary_dict()
    shape["results"][0]["result"]["llama"]["ln_ppl_ratio"] = [0.0, None]
    text = render_llama(as_summary(shape), candidate="Q8_0")
    assert "Mean ln(PPL(Q)/PPL(base))     :   0.000000 ±       -nan" in text


def test_a_failed_candidate_among_others_shows_its_cause() -> None:
    shape = summary_dict()
    shape["candidates"].append(candidate("Q2\x1b_K", 1, 2.0))
    shape["results"].append(failed("Q2\x1b_K", "pydoc", "ends\nearly"))
    text = render_llama(as_summary(shape))
    assert text.endswith("\nQ2\\x1b_K on pydoc:\nfailed: ends\\nearly\n")
    with pytest.raises(UserError, match=r"to print: failed: ends\\nearly"):
        render_llama(as_summary(shape), candidate="Q2\x1b_K")


def test_a_run_without_these_statistics_says_so() -> None:
    shape = summary_dict()
    shape["llama_compat"] = False
    for found in shape["results"]:
        found["result"]["llama"] = None
    with pytest.raises(UserError, match="the run was made without them"):
        render_llama(as_summary(shape))


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError) as caught:
        render_llama(as_summary(summary_dict()), candidate="Q5")
    assert str(caught.value) == 'no candidate "Q5" in this run; it has: Q8_0, Q4_K_M'
    with pytest.raises(UserError, match='no corpus "wiki"'):
        render_llama(as_summary(summary_dict()), corpus="wiki")
