"""Where names stand in a plot: beside their points, on no other point, on no other name."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

# Advance widths in Arial (and Liberation Sans, which is cut to the same), in thousandths of an em.
_ARIAL: Final = {
    222: "ijl'",
    278: " !,./:;I[\\]ft|",
    333: "()-r`",
    389: "*",
    500: "Jckvsxyz",
    584: "+<=>~",
    611: "FTZ",
    667: "ABEKPSVXY&",
    722: "CDHNRUw",
    778: "GOQ",
    833: "Mm",
    889: "%",
    944: "W",
    1015: "@",
}
_WIDTHS: Final = {char: width for width, chars in _ARIAL.items() for char in chars}
_ASCII_WIDTH: Final = 556
_OTHER_WIDTH: Final = 700
_WIDE_WIDTH: Final = 1000

_POINT: Final = 5.0  # half the side of the square that a point takes, in pixels
_DISTANCES: Final = (8.0, 13.0, 20.0, 30.0, 42.0)
_DIAGONAL: Final = math.sqrt(0.5)
_DIRECTIONS: Final = (
    (1.0, 0.0),
    (-1.0, 0.0),
    (_DIAGONAL, -_DIAGONAL),
    (_DIAGONAL, _DIAGONAL),
    (-_DIAGONAL, -_DIAGONAL),
    (-_DIAGONAL, _DIAGONAL),
    (0.0, -1.0),
    (0.0, 1.0),
)
_CROSSING: Final = 15.0  # a name across a line is as bad as one so many pixels further away
_NEAR: Final = _DISTANCES[0] + 1


class Spot(NamedTuple):
    """A place in pixels, from the top left corner of the plot."""

    x: float
    y: float


class Segment(NamedTuple):
    """A horizontal or vertical line of the plot, which a name rather does not cross."""

    start: Spot
    end: Spot


@dataclass(frozen=True, slots=True)
class Label:
    """A name that found its place.

    Attributes:
        text: what it reads.
        left: where it begins, in pixels.
        middle: of its height, in pixels.
        leader: where a line from its point ends; None for a name right beside its point.
    """

    text: str
    left: float
    middle: float
    leader: Spot | None


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float


def text_width(words: str, size: float) -> float:
    """How wide words are in Arial of so many pixels, a little too much rather than too little."""
    return sum(map(_advance, words)) * size / 1000


def place_labels(
    names: Sequence[str],
    spots: Sequence[Spot],
    segments: Sequence[Segment],
    area: Spot,
    *,
    size: float,
) -> list[Label | None]:
    """Give each point's name the nearest free place; one that finds none stays unnamed.

    Args:
        names: of the points; who comes first chooses first.
        spots: the points, all of which are kept free; there may be more of them than names.
        segments: lines of the plot.
        area: the bottom right corner of the plot.
        size: height of the font, in pixels.

    Returns:
        One label, or None, for each name.
    """
    points = [_Box(x - _POINT, y - _POINT, x + _POINT, y + _POINT) for x, y in spots]
    lines = [_line_box(each) for each in segments]
    taken: list[_Box] = []
    placed: list[Label | None] = []
    for name, spot in zip(names, spots, strict=False):
        label, box = _best(name, spot, points, taken, lines, area, size)
        if box is not None:
            taken.append(box)
        placed.append(label)
    return placed


def _best(
    name: str,
    spot: Spot,
    points: Sequence[_Box],
    taken: Sequence[_Box],
    lines: Sequence[_Box],
    area: Spot,
    size: float,
) -> tuple[Label | None, _Box | None]:
    width, height = text_width(name, size), size * 1.2
    reach = _DISTANCES[-1] + height
    window = _Box(spot.x - reach - width, spot.y - reach, spot.x + reach + width, spot.y + reach)
    hard = [box for box in (*points, *taken) if _overlap(box, window)]
    soft = [box for box in lines if _overlap(box, window)]
    least, best = math.inf, None
    for distance, box in _places(spot, width, height):
        if distance >= least:
            break
        if box.left < 0 or box.top < 0 or box.right > area.x or box.bottom > area.y:
            continue
        if any(_overlap(box, other) for other in hard):
            continue
        cost = distance + _CROSSING * sum(_overlap(box, other) for other in soft)
        if cost < least:
            least, best = cost, (distance, box)
    if best is None:
        return None, None
    distance, box = best
    leader = None
    if distance > _NEAR:
        leader = Spot(
            round(min(max(spot.x, box.left), box.right), 1),
            round(min(max(spot.y, box.top), box.bottom), 1),
        )
    middle = round((box.top + box.bottom) / 2, 1)
    return Label(name, round(box.left, 1), middle, leader), box


def _places(spot: Spot, width: float, height: float) -> Iterator[tuple[float, _Box]]:
    """Boxes around a point, the nearest first; to its right before to its left, then elsewhere."""
    for distance in _DISTANCES:
        for across, down in _DIRECTIONS:
            middle_x = spot.x + across * distance + _sign(across) * width / 2
            middle_y = spot.y + down * distance + _sign(down) * height / 2
            yield (
                distance,
                _Box(
                    middle_x - width / 2,
                    middle_y - height / 2,
                    middle_x + width / 2,
                    middle_y + height / 2,
                ),
            )


def _line_box(line: Segment) -> _Box:
    xs, ys = sorted((line.start.x, line.end.x)), sorted((line.start.y, line.end.y))
    return _Box(xs[0] - 1, ys[0] - 1, xs[1] + 1, ys[1] + 1)


def _overlap(one: _Box, other: _Box) -> bool:
    return (
        one.left < other.right
        and other.left < one.right
        and one.top < other.bottom
        and other.top < one.bottom
    )


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def _advance(char: str) -> int:
    if char.isascii():
        return _WIDTHS.get(char, _ASCII_WIDTH)
    return _WIDE_WIDTH if unicodedata.east_asian_width(char) in "WF" else _OTHER_WIDTH
