"""The main plot as Vega draws it: every mark is where the data says."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from kldcloud.report.html.chart_style import LAYOUTS, NARROW, WIDE, Layout
from kldcloud.report.html.size_chart import describe, size_chart
from kldcloud.report.html.size_points import Metric, SizePlot, size_plot
from kldcloud.report.summary_shape import Summary
from tests.report.summaries import as_summary, candidate, measured, rename, result, summary_dict

from .realistic import SIZES, draws, realistic_summary
from .scenes import items, lines, scene, words


def drawn(summary: Summary, layout: Layout = WIDE, metric: Metric = "mean") -> dict[str, Any]:
    chart = size_chart(size_plot(summary, summary.corpora[0].name, metric), layout)
    assert chart is not None
    return scene(chart)


def many(count: int) -> Summary:
    """So many candidates, each smaller and further from the base than the one before it."""
    shape = summary_dict()
    shape.update(candidates=[], results=[], comparisons=[])
    for at in range(count):
        shape["candidates"].append(candidate(f"Q{at}", 2**36 - at * 2**27, 8.0))
        kld = 0.001 * 1.02**at * (1.5 if at % 2 else 1)
        shape["results"].append(measured(f"Q{at}", "pydoc", result(kld, kld / 50)))
    return as_summary(shape)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.key)
def test_points_stand_where_their_tokens_put_them(layout: Layout) -> None:
    found = {
        item["description"].split(":")[0]: item
        for item in items(drawn(realistic_summary(), layout), "points")
    }
    assert list(found) == list(SIZES)
    # Positions are linear in size and in the logarithm: any two points fix the scale.
    logs = {name: math.log(draws(name, "wikitext-2").kld.mean()) for name in SIZES}
    (small, large), (low, high) = ("Q2_K", "Q8_0"), ("Q8_0", "Q2_K")
    wide = found[large]["x"] - found[small]["x"]
    tall = found[low]["y"] - found[high]["y"]
    assert wide > layout.width * 0.8
    assert tall > layout.height * 0.8
    for name, (gib, _) in SIZES.items():
        across = (gib - SIZES[small][0]) / (SIZES[large][0] - SIZES[small][0])
        up = (logs[name] - logs[low]) / (logs[high] - logs[low])
        assert found[name]["x"] == pytest.approx(found[small]["x"] + across * wide, abs=0.01)
        assert found[name]["y"] == pytest.approx(found[low]["y"] - up * tall, abs=0.01)


@pytest.mark.parametrize(("share", "across"), [(0.002, 0.02), (0.05, 0.5), (0.5, 1.0)])
def test_files_of_nearly_one_size_do_not_stand_at_opposite_ends(
    share: float, across: float
) -> None:
    shape = summary_dict()
    shape.update(candidates=[], results=[], comparisons=[])
    for at, name in enumerate(("small", "large")):
        size = 2**30 * (1 - share * (1 - at))
        shape["candidates"].append(candidate(name, int(size), 8.0))
        shape["results"].append(measured(name, "pydoc", result(0.1 / (1 + at), 0.01)))
    left, right = (item["x"] for item in items(drawn(as_summary(shape)), "points"))
    assert (right - left) / WIDE.width == pytest.approx(across / 1.12, abs=0.01)
    assert (left + right) / 2 == pytest.approx(WIDE.width / 2, abs=2)


def test_every_name_stands_beside_its_own_point() -> None:
    whole = drawn(realistic_summary())
    spots = {item["description"].split(":")[0]: item for item in items(whole, "points")}
    names = items(whole, "names")
    assert sorted(name["text"] for name in names) == sorted(SIZES)
    for name in names:
        spot = spots[name["text"]]
        assert abs(name["y"] - spot["y"]) < 60
        assert spot["x"] - 130 < name["x"] < spot["x"] + 60


def test_shape_says_the_same_as_colour() -> None:
    found = {
        item["description"].split(":")[0]: (item["shape"], item["fill"])
        for item in items(drawn(realistic_summary()), "points")
    }
    assert found.pop("Q4_K_M") == ("diamond", "#d55e00")
    assert set(found.values()) == {("circle", "#0072b2")}
    assert words(drawn(realistic_summary()), "legend-label") == [
        "on the Pareto frontier",
        "off the frontier",
    ]


def test_the_frontier_goes_in_steps_through_its_points() -> None:
    whole = drawn(realistic_summary())
    (steps,) = lines(whole, "frontier")
    points = [item for item in items(whole, "points") if item["shape"] == "circle"]
    assert {step["interpolate"] for step in steps} == {"step-after"}
    assert [(step["x"], step["y"]) for step in steps] == sorted(
        (item["x"], item["y"]) for item in points
    )


def test_bars_are_the_intervals_and_quantiles_have_none() -> None:
    whole = drawn(realistic_summary())
    points, bars = items(whole, "points"), items(whole, "intervals")
    scale = {}
    for name in ("Q8_0", "Q2_K"):
        (scale[name],) = (
            each["y"] for each in points if each["description"].startswith(f"{name}:")
        )
    slope = (scale["Q2_K"] - scale["Q8_0"]) / math.log(SIZES["Q2_K"][1] / SIZES["Q8_0"][1])
    for point, bar, shown in zip(
        points, bars, size_plot(realistic_summary(), "wikitext-2", "mean").points, strict=True
    ):
        assert shown.interval95 is not None
        for end, value in zip(("y", "y2"), shown.interval95, strict=True):
            offset = slope * math.log(value / shown.kld)
            assert bar[end] == pytest.approx(point["y"] + offset, abs=0.01)
    assert items(drawn(realistic_summary(), metric="p99_9"), "intervals") == []


def test_a_bar_that_reaches_zero_ends_at_the_axis() -> None:
    shape = summary_dict()
    shape["results"][0] = measured("Q8_0", "pydoc", result(0.004, 0.003))
    chart = size_chart(size_plot(as_summary(shape), "pydoc", "mean"), WIDE)
    assert chart is not None
    bar = items(scene(chart), "intervals")[0]
    assert bar["y"] == pytest.approx(WIDE.height)
    assert bar["y2"] < WIDE.height - 100
    # Nor may a bar that nearly reaches it squeeze everything else to the top.
    shape["results"][0]["result"]["kld"]["mean"]["interval95"] = [1e-12, 0.01]
    low, _ = _kld_domain(as_summary(shape))
    assert low > 0.004 / 20


def _kld_domain(summary: Summary) -> list[float]:
    chart = size_chart(size_plot(summary, "pydoc", "mean"), WIDE)
    assert chart is not None
    (domain,) = {
        tuple(layer["encoding"]["y"]["scale"]["domain"])
        for layer in chart["layer"]
        if layer["encoding"]["y"]["scale"]
    }
    return list(domain)


def test_axis_labels_are_plain_numbers() -> None:
    labels = words(drawn(realistic_summary()), "axis-label")
    assert {"15", "20", "35"} <= set(labels)
    assert {"0.005", "0.01", "0.1", "0.2"} <= set(labels)


def test_files_of_kilobytes_have_an_axis_of_mebibytes() -> None:
    shape = summary_dict()
    shape["candidates"] = [candidate("Q8_0", 150_000, 8.5), candidate("Q4_K_M", 90_000, 5.1)]
    assert "file size, MiB" in words(drawn(as_summary(shape)), "axis-title")
    assert "file size, GiB" in words(drawn(as_summary(summary_dict())), "axis-title")


def test_one_candidate_alone_has_a_plot() -> None:
    shape = summary_dict()
    shape.update(candidates=shape["candidates"][:1], results=shape["results"][:1], comparisons=[])
    whole = drawn(as_summary(shape))
    (point,) = items(whole, "points")
    assert 0 < point["x"] < WIDE.width
    assert 0 < point["y"] < WIDE.height


def test_nothing_to_draw_is_no_chart() -> None:
    assert size_chart(SizePlot("mean", (), ()), WIDE) is None


def test_of_many_candidates_only_those_of_the_frontier_are_named() -> None:
    for layout in (WIDE, NARROW):
        whole = drawn(many(200), layout)
        assert len(items(whole, "points")) == 200
        names = items(whole, "names")
        on = {
            item["description"].split(":")[0]
            for item in items(whole, "points")
            if item["shape"] == "circle"
        }
        assert len(on) == 101  # every other one, and the smallest file
        assert {name["text"] for name in names} < on
        assert 3 < len(names) < len(on)


def test_hostile_names_stay_data() -> None:
    shape = summary_dict()
    rename(shape, "Q8_0", "</script>{{x}}${y}\u202e" + "z" * 300)
    chart = size_chart(size_plot(as_summary(shape), "pydoc", "mean"), WIDE)
    assert chart is not None
    (name,) = (each["text"] for each in items(scene(chart), "names") if each["text"] != "Q4_K_M")
    assert name.startswith("</script>{{x}}$")
    assert len(name) == WIDE.name_shown
    assert "\u202e" not in json.dumps(chart, ensure_ascii=False)


def test_the_plot_can_be_heard() -> None:
    plot = size_plot(realistic_summary(), "wikitext-2", "mean")
    assert describe(plot).startswith(
        "mean KLD against file size for 8 candidates, logarithmic upwards. On the Pareto frontier,"
        " from the smallest file: Q2_K (12.90 GiB, 0.171000 nats), UD-IQ3_XXS"
    )
