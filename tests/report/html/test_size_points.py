"""The main plot's points, against what was drawn, and the frontier, against its definition."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy import stats

from kldcloud.report.html.size_points import pareto, size_plot
from tests.report.summaries import as_summary, candidate, failed, measured, result, summary_dict

from .realistic import CHUNKS, CORPORA, SIZES, draws, realistic_dict, realistic_summary


def beaten(sizes: list[float], values: list[float], at: int) -> bool:
    """By the definition: somebody is nowhere worse and somewhere better."""
    return any(
        sizes[other] <= sizes[at]
        and values[other] <= values[at]
        and (sizes[other] < sizes[at] or values[other] < values[at])
        for other in range(len(sizes))
    )


@pytest.mark.parametrize("seed", range(30))
def test_the_frontier_is_who_nobody_beats(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - no secret
    # Few different values: many ties in one or both.
    sizes = [float(rng.randint(1, 8)) for _ in range(rng.randint(1, 40))]
    values = [rng.randint(1, 8) / 4 for _ in sizes]
    expected = {at for at in range(len(sizes)) if not beaten(sizes, values, at)}
    assert pareto(sizes, values) == expected


def test_no_points_have_no_frontier() -> None:
    assert pareto([], []) == frozenset()


@pytest.mark.parametrize("corpus", CORPORA)
def test_points_are_the_tokens_means_with_intervals_over_chunks(corpus: str) -> None:
    plot = size_plot(realistic_summary(), corpus, "mean")
    assert [point.name for point in plot.points] == list(SIZES)
    for point in plot.points:
        kld = draws(point.name, corpus).kld
        assert point.bytes == int(SIZES[point.name][0] * 2**30)
        assert point.kld == pytest.approx(kld.mean(), rel=1e-12)
        assert point.error == pytest.approx(stats.sem(kld.mean(axis=1)), rel=1e-9)
        assert point.interval95 is not None
        # The fixture's intervals are the normal distribution's.
        low, high = stats.norm.interval(0.95, kld.mean(), stats.sem(kld.mean(axis=1)))
        assert point.interval95 == pytest.approx((low, high), rel=1e-4)
    assert len(kld) == CHUNKS


@pytest.mark.parametrize("corpus", CORPORA)
def test_the_other_axis_is_the_quantile_of_the_tokens(corpus: str) -> None:
    plot = size_plot(realistic_summary(), corpus, "p99_9")
    for point in plot.points:
        expected = np.quantile(draws(point.name, corpus).kld, 0.999)
        assert point.kld == pytest.approx(expected, rel=1e-12)
        assert point.error is None
        assert point.interval95 is None


def test_the_frontier_of_the_realistic_run() -> None:
    plot = size_plot(realistic_summary(), "wikitext-2", "mean")
    # Q4_K_M is larger than UD-Q4_K_XL and no closer to the base.
    assert [point.name for point in plot.frontier()] == [
        "Q2_K",
        "UD-IQ3_XXS",
        "IQ4_XS",
        "UD-Q4_K_XL",
        "Q5_K_M",
        "UD-Q6_K_XL",
        "Q8_0",
    ]


def test_who_has_no_place_is_named_with_the_reason() -> None:
    shape = summary_dict()
    for name in ("broken", "waiting", "sizeless", "same", "below", "unknown"):
        shape["candidates"].append(candidate(name, 50_000_000, 3.0))
    shape["candidates"][4]["bytes"] = None
    shape["results"] += [
        failed("broken", "pydoc", "cut off"),
        measured("sizeless", "pydoc", result(0.1, 0.01)),
        measured("same", "pydoc", result(0.0, 0.0)),
        measured("below", "pydoc", result(-1e-9, 1e-9)),
        measured("unknown", "pydoc", {**result(0.1, None)}),
    ]
    shape["results"][-1]["result"]["kld"]["mean"]["value"] = None
    plot = size_plot(as_summary(shape), "pydoc", "mean")
    assert [point.name for point in plot.points] == ["Q8_0", "Q4_K_M"]
    assert [(each.name, each.why) for each in plot.left_out] == [
        ("broken", "failed"),
        ("waiting", "not measured yet"),
        ("sizeless", "its file size is not known"),
        ("same", "no more than zero"),
        ("below", "no more than zero"),
        ("unknown", "no such number"),
    ]


def test_one_chunk_has_no_interval() -> None:
    shape = realistic_dict()
    shape["results"][0]["result"] = result(0.01, None)
    (first, *_) = size_plot(as_summary(shape), "wikitext-2", "mean").points
    assert (first.kld, first.error, first.interval95) == (0.01, None, None)
