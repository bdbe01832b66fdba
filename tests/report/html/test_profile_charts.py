"""Charts of profiles as Vega draws them, against the tokens that were drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from kldcloud.report.html.chart_style import COLOURS, NARROW, SHAPES, WIDE
from kldcloud.report.html.curves import Curve, curves_of
from kldcloud.report.html.profile_charts import PROFILE_CHARTS
from kldcloud.report.profile_shape import Bin, Profile, Profiles
from kldcloud.report.summary_shape import Candidate

from .realistic import CONTEXT, ROWS, SIZES, draws, realistic_profiles
from .scenes import items, lines, scene, words

CORPUS = "wikitext-2"


def of_corpus(profiles: Profiles) -> list[Profile]:
    return [profile for profile in profiles.profiles if profile.corpus == CORPUS]


def drawn(kind: str, profiles: list[Profile], curves: list[Curve]) -> dict[str, Any]:
    """As page.js puts chart and data together."""
    chart = PROFILE_CHARTS[kind](profiles, curves, WIDE)
    assert chart is not None
    shown = {curve.candidate: curve.shown for curve in curves}
    data = [
        {**each.model_dump(mode="json"), "shown": shown[each.candidate]}
        for each in profiles
        if each.candidate in shown
    ]
    return scene({**chart, "datasets": {"profiles": data}})


def curves(*names: str) -> list[Curve]:
    return [Curve(name, name) for name in names or SIZES]


def profile(**parts: Any) -> Profile:
    plain = {
        "candidate": "Q8_0",
        "corpus": CORPUS,
        "curve": [],
        "by_position": [],
        "by_confidence": [],
    }
    return Profile.model_validate({**plain, **parts})


def by_name(whole: dict[str, Any], layer: str) -> dict[str, list[dict[str, Any]]]:
    """A layer's points of each candidate, which its colour tells."""
    found = {}
    for line in lines(whole, layer):
        found[list(SIZES)[COLOURS.index(line[0]["stroke"])]] = line
    return found


def test_the_distribution_shows_quantiles_of_the_tokens() -> None:
    whole = drawn("distribution", of_corpus(realistic_profiles()), curves())
    spoken = {item["description"] for item in items(whole, "points")}
    for name in SIZES:
        kld = draws(name, CORPUS).kld
        shares = [0, *np.linspace(0, 0.9, 31)[1:], *(1 - np.logspace(-1, -4, 25))[1:]]
        line = by_name(whole, "lines")[name]
        # The very first has no logarithm's worth of room, but a place.
        assert len(line) == len(shares)
        ends = (line[-1], line[20])
        slope = (ends[0]["y"] - ends[1]["y"]) / math.log(
            np.quantile(kld, shares[-1]) / np.quantile(kld, shares[20])
        )
        for item, share in zip(line, shares, strict=True):
            assert item["x"] == pytest.approx(
                WIDE.width * math.log10(1 - share) / math.log10(1 - shares[-1]), abs=0.01
            )
            expected = ends[1]["y"] + slope * math.log(
                np.quantile(kld, share) / np.quantile(kld, shares[20])
            )
            assert item["y"] == pytest.approx(expected, abs=0.01)
        assert any(words.startswith(f"{name}, 0 % of the positions: at most ") for words in spoken)


def test_the_axis_of_shares_reads_as_people_quote_them() -> None:
    labels = words(drawn("distribution", of_corpus(realistic_profiles()), curves()), "axis-label")
    shares = [label for label in labels if label.endswith("%")]
    assert shares == ["99.99 %", "99.9 %", "99 %", "90 %", "50 %", "0 %"]


def test_means_by_position_are_those_of_the_tokens_there() -> None:
    whole = drawn("position", of_corpus(realistic_profiles()), curves())
    width = ROWS // 16
    values = {name: draws(name, CORPUS).kld for name in SIZES}
    low = values["Q8_0"][:, :width].mean()
    high = values["Q2_K"][:, :width].mean()
    first = {name: line[0]["y"] for name, line in by_name(whole, "lines").items()}
    slope = (first["Q2_K"] - first["Q8_0"]) / math.log(high / low)
    for name, line in by_name(whole, "lines").items():
        assert len(line) == 16
        for at, item in enumerate(line):
            mean = values[name][:, at * width : (at + 1) * width].mean()
            assert item["y"] == pytest.approx(
                first["Q8_0"] + slope * math.log(mean / low), abs=0.01
            )
    steps = np.diff([item["x"] for item in by_name(whole, "lines")["Q8_0"]])
    assert steps == pytest.approx(np.full(15, steps[0]))
    (spoken,) = (
        item["description"]
        for item in items(whole, "points")
        if item["description"].startswith(f"Q8_0, {CONTEXT - ROWS} to {CONTEXT - ROWS + width},")
    )
    assert spoken.startswith(f"Q8_0, 128 to 136, 960 positions: {low:.6f} \u00b1 ")


def test_bars_are_one_standard_error_each_way() -> None:
    bins = [
        {"low": 0, "high": 1, "tokens": 9, "mean": 0.1, "error": 0.02},
        {"low": 1, "high": 2, "tokens": 9, "mean": 0.4, "error": 0.5},
        {"low": 2, "high": 3, "tokens": 9, "mean": 0.2, "error": None},
    ]
    whole = drawn("position", [profile(by_position=bins)], curves("Q8_0"))
    first, second = items(whole, "errors")
    points = items(whole, "points")
    scale = (points[1]["y"] - points[0]["y"]) / math.log(0.4 / 0.1)
    assert first["y"] - points[0]["y"] == pytest.approx(scale * math.log(0.08 / 0.1), abs=0.01)
    assert first["y2"] - points[0]["y"] == pytest.approx(scale * math.log(0.12 / 0.1), abs=0.01)
    # A mean less its error that is below zero ends at the axis.
    assert second["y"] == pytest.approx(WIDE.height)


def test_confidence_runs_from_sure_to_unsure_and_its_last_bin_is_open() -> None:
    whole = drawn("confidence", of_corpus(realistic_profiles()), curves("Q8_0"))
    points = items(whole, "points")
    assert [point["x"] for point in points] == sorted(point["x"] for point in points)
    last = items(whole, "lines")[-1]
    bins = of_corpus(realistic_profiles())[0].by_confidence
    low, high = bins[0].low, bins[0].high
    assert low is not None
    assert high is not None
    before = bins[-2]
    assert before.low is not None
    assert before.high is not None
    xs = [item["x"] for item in items(whole, "lines")]
    scale = (xs[-2] - xs[0]) / ((before.low + before.high) / 2 - (low + high) / 2)
    assert last["x"] - xs[0] == pytest.approx(scale * ((bins[-1].low or 0) - (low + high) / 2))


def test_each_curve_has_a_colour_and_a_shape_of_its_own() -> None:
    whole = drawn("position", of_corpus(realistic_profiles()), curves())
    pairs = {(item["fill"], item["shape"]) for item in items(whole, "points")}
    assert pairs == set(zip(COLOURS, SHAPES, strict=True))
    assert words(whole, "legend-label") == list(SIZES)


def test_numbers_that_do_not_exist_are_left_out() -> None:
    gaps = profile(
        curve=[[0.0, None], [0.5, 0.0], [0.9, 0.1], [None, 0.2], [0.99, 0.3], [1.0, 9.0]],
        by_position=[
            Bin(low=None, high=1, tokens=1000, mean=0.3, error=None),
            Bin(low=1, high=2, tokens=0, mean=None, error=None),
            Bin(low=2, high=3, tokens=1, mean=-1e-9, error=None),
            Bin(low=3, high=4, tokens=1, mean=0.1, error=None),
        ],
    )
    assert len(items(drawn("distribution", [gaps], curves("Q8_0")), "lines")) == 2
    whole = drawn("position", [gaps], curves("Q8_0"))
    assert [item["description"] for item in items(whole, "points")] == [
        "Q8_0, 3 to 4, 1 positions: 0.100000 nats"
    ]
    assert items(whole, "errors") == []


@pytest.mark.parametrize(("positions", "ends"), [(45, "97.5 %"), (100, "99 %"), (5000, "99.9 %")])
def test_a_distribution_ends_where_no_whole_position_is_left(positions: int, ends: str) -> None:
    shares = (0.5, 0.9, 0.975, 0.99, 0.999, 0.9999)
    few = profile(
        curve=[[share, share] for share in shares],
        by_position=[Bin(low=32, high=64, tokens=positions, mean=0.1, error=None)],
    )
    told = [
        item["description"]
        for item in items(drawn("distribution", [few], curves("Q8_0")), "points")
    ]
    assert told[-1].startswith(f"Q8_0, {ends} of the positions: ")


@pytest.mark.parametrize("kind", PROFILE_CHARTS)
def test_without_positive_numbers_there_is_no_chart(kind: str) -> None:
    assert PROFILE_CHARTS[kind]([profile()], curves("Q8_0"), NARROW) is None
    assert PROFILE_CHARTS[kind]([], [], NARROW) is None


def test_names_that_vega_could_mistake_for_its_own_stay_names() -> None:
    candidates = [
        Candidate(name=name, file=None, sha256=None, bytes=1, parameters=None, bits_per_weight=None)
        for name in ("__proto__", "constructor", "datum.x", "a]['b", "toString", "null")
    ]
    bins = [{"low": 0, "high": 1, "tokens": 9, "mean": 0.1, "error": None}]
    profiles = [profile(candidate=each.name, by_position=bins) for each in candidates]
    named = curves_of(candidates)
    assert [curve.candidate for curve in named] == [each.name for each in candidates]
    whole = drawn("position", profiles, list(named))
    spoken = [item["description"].split(", 0 to 1")[0] for item in items(whole, "points")]
    assert spoken == [curve.shown for curve in named]
    assert len({item["fill"] for item in items(whole, "points")}) == len(named)
