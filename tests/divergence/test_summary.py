"""The summary: every number against plain numpy, and the same bytes from any shard size."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from synthetic_records import identity, partials, records

from kldcloud.divergence.llama_statistics import LlamaStatistics, render_block
from kldcloud.divergence.partial import Partial, PartialIdentity
from kldcloud.divergence.records import TokenRecords
from kldcloud.divergence.summary import Reduction, ResultSummary
from kldcloud.errors import FormatError

QUANTILES = {
    "minimum": 0,
    "p0.1": 0.1,
    "p1": 1,
    "p5": 5,
    "p10": 10,
    "median": 50,
    "p90": 90,
    "p95": 95,
    "p99": 99,
    "p99.9": 99.9,
    "maximum": 100,
}


def reduced(source: TokenRecords, shard: int = 4, **options: Any) -> ResultSummary:
    reduction = Reduction(**options)
    for partial in partials(source, shard):
        reduction.add(Partial.from_bytes(partial.to_bytes(), expected=partial.identity))
    return reduction.result()


def as_json(summary: ResultSummary) -> str:
    return json.dumps(summary.to_json_dict(), allow_nan=False)


def check(
    estimate: Any, value: float, influence: np.ndarray, chunk: np.ndarray, *, log: bool = False
) -> None:
    """Compare with errors from the influence of each position on the estimate, summed naively."""
    n = len(influence)
    deviations = influence - influence.mean()
    naive = math.sqrt((deviations**2).sum() / (n - 1) / n)
    sums = np.array([deviations[chunk == g].sum() for g in np.unique(chunk)])
    clusters = len(sums)
    robust = math.sqrt(clusters / (clusters - 1) * (sums**2).sum()) / n
    half = float(stats.t.ppf(0.975, clusters - 1)) * robust
    assert estimate["value"] == pytest.approx(value, rel=1e-11)
    assert estimate["error_naive"] == pytest.approx(naive, rel=1e-9)
    assert estimate["error"] == pytest.approx(robust, rel=1e-9)
    interval = [value - half, value + half]
    if log:
        interval = [value * math.exp(-half / value), value * math.exp(half / value)]
    assert estimate["interval95"] == pytest.approx(interval, rel=1e-9)


@pytest.mark.parametrize("kept", [1.0, 0.6])
def test_every_estimate_matches_plain_numpy(kept: float) -> None:
    source = records(23, seed=1)
    # Chunks of unequal length, too: a cluster weighs by its positions.
    source = source.select(np.random.default_rng(1).random(len(source)) <= kept)
    found: Any = reduced(source).to_json_dict()
    chunk, q, base = source.chunk, source.nll, source.nll_base
    change = np.exp(-q) - np.exp(-base)
    ppl, ppl_base = math.exp(q.mean()), math.exp(base.mean())
    perplexity = found["perplexity"]
    assert (found["chunks"], found["tokens"]) == (23, len(source))
    check(found["kld"]["mean"], source.kld.mean(), source.kld, chunk)
    check(found["reverse_kld"]["mean"], source.reverse_kld.mean(), source.reverse_kld, chunk)
    check(found["entropy_base"]["mean"], source.entropy_base.mean(), source.entropy_base, chunk)
    check(perplexity["candidate"], ppl, ppl * q, chunk, log=True)
    check(perplexity["base"], ppl_base, ppl_base * base, chunk, log=True)
    check(perplexity["ratio"], ppl / ppl_base, ppl / ppl_base * (q - base), chunk, log=True)
    check(perplexity["log_ratio"], float(q.mean() - base.mean()), q - base, chunk)
    check(perplexity["difference"], ppl - ppl_base, ppl * q - ppl_base * base, chunk)
    assert perplexity["correlation"] == pytest.approx(np.corrcoef(q, base)[0, 1], rel=1e-11)
    check(found["probability_change"]["mean"], change.mean(), change, chunk)
    rms = math.sqrt((change**2).mean())
    check(found["probability_change"]["rms"], rms, change**2 / (2 * rms), chunk)
    same_top = (source.top == source.top_base).astype(float)
    check(found["same_top"], same_top.mean(), same_top, chunk)


def interpolated(values: np.ndarray, percent: float) -> float:
    ordered = sorted(values.tolist())
    rank = percent / 100 * (len(ordered) - 1)
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (rank - below) * (ordered[above] - ordered[below])


def test_quantiles_interpolate_linearly_between_the_sorted_values() -> None:
    source = records(9, seed=2)
    found: Any = reduced(source).to_json_dict()
    change = np.exp(-source.nll) - np.exp(-source.nll_base)
    for table, values, names in (
        (found["kld"], source.kld, QUANTILES),
        (found["probability_change"], change, QUANTILES | {"p25": 25, "p75": 75}),
    ):
        assert table["quantiles"] == "exact"
        for name, percent in names.items():
            assert table[name] == pytest.approx(interpolated(values, percent), rel=1e-12), name


def test_the_json_has_the_published_shape() -> None:
    found: Any = reduced(records(3)).to_json_dict()
    estimate = {"value", "error_naive", "error", "interval95"}
    changes = set(QUANTILES) | {"p25", "p75"}
    pairs = {"ppl_q", "ppl_base", "ln_ppl_ratio", "ppl_ratio", "ppl_difference"}
    pairs |= {"kld_mean", "dp_mean", "dp_rms", "same_top"}
    assert set(found) == {
        *("chunks", "tokens", "kld", "reverse_kld", "entropy_base", "perplexity"),
        *("probability_change", "same_top", "llama"),
    }
    assert set(found["kld"]) == {"mean", "quantiles", *QUANTILES}
    assert set(found["probability_change"]) == {"mean", "rms", "quantiles", *changes}
    assert set(found["kld"]["mean"]) == set(found["same_top"]) == estimate
    assert set(found["perplexity"]) == {
        *("candidate", "base", "ratio", "log_ratio", "difference", "correlation"),
    }
    assert set(found["llama"]) == pairs | {"ln_ppl_correlation", "kld", "dp"}
    assert set(found["llama"]["kld"]) == set(QUANTILES)
    assert set(found["llama"]["dp"]) == changes


@pytest.mark.parametrize("options", [{}, {"exact_quantile_tokens": 300}])
@pytest.mark.parametrize("llama", [True, False])
def test_shard_sizes_leave_no_trace_in_the_json(options: dict[str, int], llama: bool) -> None:
    source = records(14, seed=6, llama=llama)
    texts = {as_json(reduced(source, shard, **options)) for shard in (1, 2, 4, 7, 14)}
    assert len(texts) == 1
    assert as_json(reduced(records(14, seed=7, llama=llama), 4, **options)) not in texts


def test_above_the_limit_quantiles_come_from_the_histogram() -> None:
    source = records(12, seed=3)
    exact: Any = reduced(source, exact_quantile_tokens=len(source)).to_json_dict()
    found: Any = reduced(source, exact_quantile_tokens=len(source) - 1).to_json_dict()
    assert exact["kld"]["quantiles"] == "exact"
    assert exact["llama"] is not None
    assert found["llama"] is None
    for field in ("kld", "probability_change"):
        assert found[field]["quantiles"] == "histogram"
        assert found[field]["mean"] == exact[field]["mean"]
        for name in QUANTILES:
            assert found[field][name] == pytest.approx(exact[field][name], rel=1.001e-3)
        assert found[field]["maximum"] == exact[field]["maximum"]
        assert found[field]["minimum"] == exact[field]["minimum"]


def test_a_single_chunk_has_no_robust_error() -> None:
    found: Any = reduced(records(1)).to_json_dict()
    assert found["kld"]["mean"]["error"] is None
    assert found["kld"]["mean"]["interval95"] is None
    assert found["kld"]["mean"]["error_naive"] > 0
    assert found["perplexity"]["ratio"]["interval95"] is None
    lone: Any = reduced(records(1, rows=1)).to_json_dict()
    assert lone["tokens"] == 1
    assert lone["kld"]["mean"]["error_naive"] is None
    assert lone["perplexity"]["correlation"] is None


def test_a_model_against_itself_differs_by_nothing() -> None:
    source = records(6, llama=False)
    source.nll[:] = source.nll_base
    source.top[:] = source.top_base
    source.kld[:] = source.reverse_kld[:] = 0
    found: Any = reduced(source).to_json_dict()
    nothing = {"value": 0, "error_naive": 0, "error": 0, "interval95": [0, 0]}
    one = {"value": 1, "error_naive": 0, "error": 0, "interval95": [1, 1]}
    top = found["same_top"]
    for estimate in (
        found["kld"]["mean"],
        found["perplexity"]["log_ratio"],
        found["perplexity"]["difference"],
        found["probability_change"]["mean"],
        found["probability_change"]["rms"],
    ):
        assert estimate == nothing
    assert found["perplexity"]["ratio"] == one
    assert (top["value"], top["error"]) == (1, 0)
    # That six chunks show no other token says nothing so sharp of the text that they are from.
    assert top["interval95"] == pytest.approx([0.025 ** (1 / len(source)), 1], rel=1e-12)
    assert found["perplexity"]["correlation"] == 1
    assert found["llama"] is None


def test_an_overflowing_perplexity_becomes_null() -> None:
    source = records(4)
    source.nll[:] = 800.0
    found: Any = reduced(source).to_json_dict()
    assert found["perplexity"]["candidate"]["value"] is None
    assert found["perplexity"]["log_ratio"]["value"] > 790
    assert found["same_top"]["value"] > 0


@pytest.mark.parametrize("others", [1, 3, 29, 30])
@pytest.mark.parametrize("rare", [True, False])
def test_few_positions_of_a_kind_give_no_sharper_share_than_independent_ones(
    others: int, rare: bool
) -> None:
    source = records(16, rows=31, seed=2, llama=False)
    n = len(source)
    differs = np.zeros(n, bool)
    differs[np.linspace(0, n - 1, others).astype(int)] = True
    source.top[:] = np.where(differs == rare, 99, source.top_base)
    found: Any = reduced(source).to_json_dict()["same_top"]
    mean, half = found["value"], float(stats.t.ppf(0.975, 15)) * found["error"]
    expected = [max(0.0, mean - half), min(1.0, mean + half)]
    if others < 30:
        exact = stats.binomtest(round(mean * n), n).proportion_ci(method="exact")
        expected = [min(expected[0], exact.low), max(expected[1], exact.high)]
    assert found["interval95"] == pytest.approx(expected, rel=1e-9)


def test_intervals_stay_within_what_is_possible() -> None:
    source = records(3, rows=4, seed=8)
    source.top[:] = source.top_base
    source.top[0] = -1
    source.kld[:] = 1e-6
    source.kld[-1] = 5.0
    found: Any = reduced(source).to_json_dict()
    assert found["same_top"]["interval95"][1] == 1
    assert found["kld"]["mean"]["interval95"][0] == 0


def test_the_tools_block_can_be_rendered_from_the_json() -> None:
    source = records(10)
    summary = reduced(source)
    assert summary.llama is not None
    read: Any = json.loads(as_json(summary))
    again = LlamaStatistics.from_json_dict(read["llama"], count=read["tokens"])
    assert render_block(again) == render_block(summary.llama)
    assert f"Maximum KLD: {source.llama_kld.max():10.6f}\n" in render_block(again)


def test_gaps_overlaps_and_disorder_are_refused_and_change_nothing() -> None:
    shards = partials(records(8), 2)
    with pytest.raises(FormatError, match="goes on at chunk 0"):
        Reduction().add(shards[1])
    reduction = Reduction()
    reduction.add(shards[0])
    for wrong in (shards[0], shards[2]):
        with pytest.raises(FormatError, match="goes on at chunk 2"):
            reduction.add(wrong)
    for shard in shards[1:]:
        reduction.add(shard)
    assert as_json(reduction.result()) == as_json(reduced(records(8)))


def test_chunks_missing_at_the_end_or_beyond_it_are_refused() -> None:
    shards = partials(records(6), 2)
    reduction = Reduction(6)
    with pytest.raises(FormatError, match="0 of 6"):
        reduction.result()
    reduction.add(shards[0])
    with pytest.raises(FormatError, match="2 of 6"):
        reduction.result()
    short = Reduction(3)
    short.add(shards[0])
    with pytest.raises(FormatError, match="goes on at chunk 2 of 3"):
        short.add(shards[1])
    with pytest.raises(FormatError, match="0 of its"):
        Reduction().result()


@pytest.mark.parametrize("field", ["run", "candidate", "corpus"])
def test_partials_of_another_run_candidate_or_corpus_are_refused(field: str) -> None:
    first, second = partials(records(4), 2)
    names = {name: getattr(second.identity, name) for name in PartialIdentity.__slots__}
    stranger = Partial.from_records(
        second.records, identity=PartialIdentity(**(names | {field: "other"}))
    )
    reduction = Reduction()
    reduction.add(first)
    with pytest.raises(FormatError, match="does not belong to the reduction of q4 on wiki"):
        reduction.add(stranger)
    reduction.add(second)
    assert reduction.result().chunks == 4


@pytest.mark.parametrize("llama", [True, False])
def test_llamas_numbers_in_some_partials_only_are_refused(llama: bool) -> None:
    reduction = Reduction()
    reduction.add(partials(records(4, llama=llama), 2)[0])
    with pytest.raises(FormatError, match="some partials only"):
        reduction.add(partials(records(4, llama=not llama), 2)[1])


def test_result_can_be_asked_for_twice() -> None:
    reduction = Reduction()
    (first, second) = partials(records(4), 2)
    reduction.add(first)
    early = as_json(reduction.result())
    assert early == as_json(reduction.result())
    reduction.add(second)
    assert as_json(reduction.result()) == as_json(reduced(records(4), 4)) != early


def test_robust_intervals_cover_the_truth_where_naive_ones_do_not() -> None:
    chunks, rows, repeats, truth = 40, 20, 400, 5.0
    rng = np.random.default_rng(2015)
    template = records(chunks, rows=rows, llama=False)
    robust = naive = ratio = 0
    for _ in range(repeats):
        # Half of the variance is shared by a chunk: neighbours correlate at 0.5.
        shared = np.repeat(rng.normal(size=chunks), rows)
        template.kld[:] = truth + shared + rng.normal(size=chunks * rows)
        template.nll[:] = template.nll_base + 0.1 * shared + 0.02
        reduction = Reduction()
        reduction.add(Partial.from_records(template, identity=identity(0, chunks)))
        summary = reduction.result()
        mean, ppl = summary.kld_mean, summary.perplexity.ratio
        assert mean.interval95 is not None
        assert ppl.interval95 is not None
        robust += mean.interval95.low <= truth <= mean.interval95.high
        naive += abs(mean.value - truth) <= 1.96 * mean.error_naive
        ratio += ppl.interval95.low <= math.exp(0.02) <= ppl.interval95.high
    # 95 % of 400 with a standard deviation of 4.4; three of them either side.
    assert 367 <= robust <= 393
    assert 367 <= ratio <= 393
    assert naive < 0.6 * repeats
