"""Names in a plot: inside it, on nothing else, and wide enough for what they read."""

from __future__ import annotations

import itertools
import random

import pytest

from kldcloud.report.html.labels import Label, Segment, Spot, place_labels, text_width

AREA = Spot(300.0, 200.0)
SIZE = 11.0


def box(label: Label) -> tuple[float, float, float, float]:
    half = SIZE * 0.6
    return (
        label.left,
        label.middle - half,
        label.left + text_width(label.text, SIZE),
        label.middle + half,
    )


def apart(one: tuple[float, ...], other: tuple[float, ...], slack: float = 0.11) -> bool:
    """Positions are rounded to tenths of a pixel, hence the slack."""
    return (
        one[2] <= other[0] + slack
        or other[2] <= one[0] + slack
        or one[3] <= other[1] + slack
        or other[3] <= one[1] + slack
    )


@pytest.mark.parametrize("seed", range(12))
def test_names_keep_clear_of_each_other_of_points_and_of_the_edge(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - no secret
    spots = [Spot(rng.uniform(0, AREA.x), rng.uniform(0, AREA.y)) for _ in range(4 * seed + 2)]
    names = [f"UD-Q{rng.randint(2, 8)}_K_XL"[: rng.randint(3, 10)] for _ in spots]
    lines = [Segment(Spot(0, 100), Spot(300, 100)), Segment(Spot(150, 0), Spot(150, 200))]
    placed = [each for each in place_labels(names, spots, lines, AREA, size=SIZE) if each]
    assert placed
    for one, other in itertools.combinations(map(box, placed), 2):
        assert apart(one, other)
    for label in placed:
        left, top, right, bottom = box(label)
        assert (left, top) >= (-0.06, -0.06)
        assert right <= AREA.x + 0.06
        assert bottom <= AREA.y + 0.06
        assert all(apart(box(label), (x - 4, y - 4, x + 4, y + 4)) for x, y in spots)


def test_a_lone_name_stands_right_beside_its_point() -> None:
    (label,) = place_labels(["Q8_0"], [Spot(100, 100)], [], AREA, size=SIZE)
    assert label == Label("Q8_0", 108.0, 100.0, None)


def test_at_the_right_edge_it_stands_on_the_left() -> None:
    (label,) = place_labels(["Q8_0"], [Spot(298, 100)], [], AREA, size=SIZE)
    assert label is not None
    assert label.left + text_width("Q8_0", SIZE) == pytest.approx(290, abs=0.06)


def test_a_name_rather_stands_elsewhere_than_across_a_line() -> None:
    line = Segment(Spot(100, 100), Spot(200, 100))
    (label,) = place_labels(["Q8_0"], [Spot(100, 100)], [line], AREA, size=SIZE)
    assert label is not None
    assert label.left < 100


def test_a_name_that_is_moved_away_is_led_to_its_point() -> None:
    around = [Spot(100 + 11 * x, 100 + 11 * y) for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y]
    (label,) = place_labels(["Q8_0"], [Spot(100, 100), *around], [], AREA, size=SIZE)
    assert label is not None
    assert label.leader is not None
    left, top, right, bottom = box(label)
    assert left - 0.1 <= label.leader.x <= right + 0.1
    assert top - 0.1 <= label.leader.y <= bottom + 0.1


def test_where_there_is_no_room_there_is_no_name() -> None:
    spots = [Spot(10.0 * (at % 10), 10.0 * (at // 10)) for at in range(100)]
    placed = place_labels(["UD-Q4_K_XL"] * 100, spots, [], Spot(100, 100), size=SIZE)
    assert placed.count(None) > 90
    assert place_labels(["x" * 300], [Spot(150, 100)], [], AREA, size=SIZE) == [None]


def test_widths_are_those_of_arial_or_a_little_more() -> None:
    assert text_width("Q8_0", 1000) == 778 + 556 * 3
    assert text_width("iW", 1000) == 222 + 944
    assert text_width("\u91cf\u5316", 1000) == 2000
    assert text_width("", 11) == 0
