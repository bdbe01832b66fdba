"""The log-histogram: 0.1 % of the value at every quantile, exact merging, no trust in bytes."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest

from kldcloud.divergence.histogram import BINS, HIGHEST, LOWEST, LogHistogram
from kldcloud.errors import EngineError, FormatError

QS = np.concatenate([[0, 1e-4, 1e-3], np.linspace(0.01, 0.99, 99), [0.999, 0.9999, 1]])
# The bound is met at the edges of a bin: the last bits of a logarithm may step over it.
BOUND = 1e-3 * (1 + 1e-9)


def histogram(values: np.ndarray) -> LogHistogram:
    found = LogHistogram()
    found.add(values)
    return found


def log_uniform(rng: np.random.Generator) -> np.ndarray:
    return 10 ** rng.uniform(-12, 4, 100_000)


def heavy_tail(rng: np.random.Generator) -> np.ndarray:
    return np.minimum(1e-4 * rng.pareto(0.7, 100_000) + 1e-9, 9e3)


def with_zeros_and_negatives(rng: np.random.Generator) -> np.ndarray:
    values = 10 ** rng.uniform(-9, 2, 60_000)
    values[:20_000] *= -1
    values[20_000:30_000] = 0
    return values


@pytest.mark.parametrize("make", [log_uniform, heavy_tail, with_zeros_and_negatives])
def test_quantiles_are_within_a_thousandth_of_the_exact_value(make: object) -> None:
    assert callable(make)
    values = make(np.random.default_rng(7))
    found = histogram(values)
    exact = np.quantile(values, QS)
    for q, expected in zip(QS, exact, strict=True):
        assert abs(found.quantile(q) - expected) <= BOUND * abs(expected), q
    assert (found.minimum, found.maximum) == (values.min(), values.max())
    assert found.quantile(0) == values.min()
    assert found.quantile(1) == values.max()


def test_every_single_value_in_range_is_represented_within_the_bound() -> None:
    for value in 10 ** np.random.default_rng(3).uniform(-12, 4, 300):
        for signed in (value, -value):
            # Three values, so that the middle one is not an exact extreme.
            middle = histogram(np.array([-1e5, signed, 1e5])).quantile(0.5)
            assert abs(middle - signed) <= BOUND * value


def test_values_outside_the_range_are_counted_and_bounded() -> None:
    tiny = histogram(np.array([0.0, LOWEST / 7, 1.0]))
    assert abs(tiny.quantile(0.5) - LOWEST / 7) <= LOWEST
    negative = histogram(np.array([-1.0, -LOWEST / 7, 0.0]))
    assert -LOWEST <= negative.quantile(0.5) < 0
    huge = histogram(np.array([0.0, 5 * HIGHEST, 7 * HIGHEST]))
    assert HIGHEST <= huge.quantile(0.5) <= 7 * HIGHEST
    assert huge.quantile(1) == 7 * HIGHEST


def test_not_finite_values_are_refused_and_leave_no_trace() -> None:
    found = histogram(np.array([1.0, 2.0]))
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(EngineError, match="1 of 3"):
            found.add([0.5, bad, 3.0])
    assert found == histogram(np.array([1.0, 2.0]))


def test_merging_in_any_order_equals_adding_everything() -> None:
    values = with_zeros_and_negatives(np.random.default_rng(1))
    parts = [histogram(part) for part in np.array_split(values, 7)]
    forward, backward = LogHistogram(), LogHistogram()
    for part in parts:
        forward = forward.merge(part)
    for part in reversed(parts):
        backward = backward.merge(part)
    assert forward == backward == histogram(values)
    assert forward.to_bytes() == histogram(values).to_bytes()


def test_an_empty_histogram_has_no_quantile() -> None:
    empty = LogHistogram()
    assert empty.count == 0
    assert math.isnan(empty.quantile(0.5))
    assert LogHistogram.from_bytes(empty.to_bytes()) == empty


@pytest.mark.parametrize("repeats", [1, 300, 70_000])
def test_bytes_are_sparse_and_give_the_histogram_back(repeats: int) -> None:
    found = histogram(np.repeat(np.array([-2.0, 0.0, 1e-3, 5.0]), repeats))
    data = found.to_bytes()
    assert len(data) < 100
    assert LogHistogram.from_bytes(data) == found


def test_hostile_bytes_are_refused() -> None:
    header = struct.Struct("<4sBxxxIdd")
    good = histogram(np.array([0.5, 1.0])).to_bytes()

    def edited(**changes: object) -> bytes:
        names = ("magic", "width", "filled", "minimum", "maximum")
        values = dict(zip(names, header.unpack_from(good), strict=True)) | changes
        return header.pack(*values.values()) + good[header.size :]

    assert LogHistogram.from_bytes(edited()).count == 2
    bins = np.frombuffer(good, "<u2", 2, header.size)
    swapped = good[: header.size] + bins[::-1].tobytes() + good[header.size + 4 :]
    beyond = good[: header.size] + np.array([0, BINS], "<u2").tobytes() + good[header.size + 4 :]
    wide = header.pack(b"KLH1", 8, 1, 1.0, 1.0)
    for bad, reason in (
        (b"", "too few"),
        (good[:-1], "do not hold"),
        (good + b"\0", "do not hold"),
        (edited(magic=b"KLH0"), "version"),
        (edited(width=3), "do not hold"),
        (edited(filled=2**32 - 1), "do not hold"),
        (edited(minimum=math.nan), "not a range"),
        (edited(minimum=2.0), "not a range"),
        (edited(maximum=3.0), "outside"),
        (swapped, "ascend"),
        (beyond, "ascend"),
        (good[:-1] + b"\0", "count"),
        (wide + bins[:1].tobytes() + b"\xff" * 8, "count"),
        (edited(filled=0)[: header.size], "empty"),
    ):
        with pytest.raises(FormatError, match=reason):
            LogHistogram.from_bytes(bad)
