"""A mergeable histogram with logarithmic bins: quantiles within 0.1 % of their value."""

from __future__ import annotations

import math
import struct
from typing import Self

import numpy as np
import numpy.typing as npt

from kldcloud.divergence.records import Floats
from kldcloud.errors import EngineError, FormatError

RELATIVE_ERROR = 1e-3
LOWEST = 1e-12
HIGHEST = 1e4

_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GAMMA = math.log(_GAMMA)
_STEPS = math.ceil(math.log(HIGHEST / LOWEST) / _LOG_GAMMA)
# Bins of one sign, by ascending magnitude: below LOWEST, the steps, above the last step.
_SIDE = _STEPS + 2
_ZERO = _SIDE
BINS = 2 * _SIDE + 1

_MAGIC = b"KLH1"
# magic, bytes a count, number of filled bins, smallest and largest value
_HEADER = struct.Struct("<4sBxxxIdd")
_WIDTHS = (1, 2, 4, 8)
# 2**40 positions in each of fewer than 2**16 bins still add up in 64 bits.
_MAX_COUNT = 1 << 40


class LogHistogram:
    """Counts of finite values in bins whose edges grow by ``(1 + a) / (1 - a)``, a = 0.1 %.

    The bins are those of DDSketch (Masson, Rim and Lee, VLDB 2019), fixed in range so that
    merging is an addition of integers: any order, the same counts. Zero has its own bin, negative
    values have mirrored ones; magnitudes below 1e-12 or above 1e4 share one bin each. The smallest
    and the largest value are exact.
    """

    __slots__ = ("_counts", "_maximum", "_minimum")

    def __init__(self) -> None:
        self._counts: npt.NDArray[np.int64] = np.zeros(BINS, np.int64)
        self._minimum = math.inf
        self._maximum = -math.inf

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    @property
    def minimum(self) -> float:
        """Smallest value, exactly; inf of an empty histogram."""
        return self._minimum

    @property
    def maximum(self) -> float:
        """Largest value, exactly; -inf of an empty histogram."""
        return self._maximum

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LogHistogram):
            return NotImplemented
        return (
            np.array_equal(self._counts, other._counts)
            and self._minimum == other._minimum
            and self._maximum == other._maximum
        )

    __hash__ = None  # type: ignore[assignment]  # mutable, so no key of a dictionary

    def add(self, values: npt.ArrayLike) -> None:
        """Count values.

        Raises:
            EngineError: a value is NaN or infinite; nothing was counted.
        """
        numbers = np.asarray(values, np.float64).ravel()
        if numbers.size == 0:
            return
        bad = numbers.size - int(np.isfinite(numbers).sum())
        if bad:
            raise EngineError(f"{bad} of {numbers.size} values are not finite numbers")
        self._counts += np.bincount(_bins(numbers), minlength=BINS)
        self._minimum = min(self._minimum, float(numbers.min()))
        self._maximum = max(self._maximum, float(numbers.max()))

    def merge(self, other: LogHistogram) -> LogHistogram:
        """A new histogram of both sets of values."""
        merged = LogHistogram()
        merged._counts = self._counts + other._counts
        merged._minimum = min(self._minimum, other._minimum)
        merged._maximum = max(self._maximum, other._maximum)
        return merged

    def quantile(self, q: float) -> float:
        """The ``q`` quantile, 0 <= q <= 1, interpolated linearly between neighbouring values.

        Each of the two neighbours is within 0.1 % of its value (within 1e-12 below 1e-12; anything
        up to the maximum above 1e4). NaN of an empty histogram.
        """
        count = self.count
        if count == 0:
            return math.nan
        rank = q * (count - 1)
        below = min(max(math.floor(rank), 0), count - 1)
        above = min(below + 1, count - 1)
        ends = np.cumsum(self._counts)
        low, high = (self._value(position, ends) for position in (below, above))
        return low + (rank - below) * (high - low)

    def to_bytes(self) -> bytes:
        """Filled bins only: a header, uint16 bin indices, counts as wide as the largest needs."""
        filled = np.flatnonzero(self._counts)
        counts = self._counts[filled]
        largest = int(counts.max()) if counts.size else 0
        width = next(width for width in _WIDTHS if largest < 1 << (8 * width))
        header = _HEADER.pack(_MAGIC, width, filled.size, self._minimum, self._maximum)
        return header + filled.astype("<u2").tobytes() + counts.astype(f"<u{width}").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, *, name: str = "histogram") -> Self:
        """Read what ``to_bytes`` wrote.

        Raises:
            FormatError: another version, a wrong length, bins or counts out of range, or extremes
                that are not in the outermost filled bins.
        """
        if len(data) < _HEADER.size:
            raise FormatError(f"{name}: {len(data)} bytes are too few for a histogram")
        magic, width, filled, minimum, maximum = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise FormatError(f"{name}: not a histogram of this version")
        expected = _HEADER.size + filled * (2 + width)
        if width not in _WIDTHS or filled > BINS or len(data) != expected:
            raise FormatError(f"{name}: {len(data)} bytes do not hold {filled} filled bins")
        bins = np.frombuffer(data, "<u2", filled, _HEADER.size).astype(np.int64)
        counts = np.frombuffer(data, f"<u{width}", filled, _HEADER.size + 2 * filled)
        histogram = cls()
        if filled == 0:
            if (minimum, maximum) != (math.inf, -math.inf):
                raise FormatError(f"{name}: an empty histogram with extremes")
            return histogram
        if (np.diff(bins) <= 0).any() or bins[-1] >= BINS:
            raise FormatError(f"{name}: bins do not ascend within the {BINS} that exist")
        if counts.min() < 1 or counts.max() > _MAX_COUNT:
            raise FormatError(f"{name}: a bin's count is not within 1 and {_MAX_COUNT}")
        if not (math.isfinite(minimum) and math.isfinite(maximum) and minimum <= maximum):
            raise FormatError(f"{name}: extremes {minimum} and {maximum} are not a range")
        # A value at an edge may fall to either side with another processor's logarithm.
        edges = _bins(np.array([minimum, maximum]))
        if np.abs(edges - bins[[0, -1]]).max() > 1:
            raise FormatError(f"{name}: extremes lie outside the filled bins")
        histogram._counts[bins] = counts.astype(np.int64)
        histogram._minimum, histogram._maximum = minimum, maximum
        return histogram

    def _value(self, position: int, ends: npt.NDArray[np.int64]) -> float:
        """Estimate of the value at one position of the sorted values."""
        if position == 0:
            return self._minimum
        if position == int(ends[-1]) - 1:
            return self._maximum
        chosen = int(np.searchsorted(ends, position, side="right"))
        return min(max(_representative(chosen), self._minimum), self._maximum)


def _bins(values: Floats) -> npt.NDArray[np.int64]:
    magnitude = np.abs(values)
    inside = np.clip(magnitude, LOWEST, 2 * HIGHEST)
    # Step s holds LOWEST * gamma**(s - 1) < magnitude <= LOWEST * gamma**s; the lowest is in 1.
    steps = np.ceil(np.log(inside / LOWEST) / _LOG_GAMMA).astype(np.int64)
    steps = np.clip(steps, 1, _STEPS + 1)
    steps[magnitude < LOWEST] = 0
    bins = np.where(values < 0, _ZERO - 1 - steps, _ZERO + 1 + steps)
    bins[values == 0] = _ZERO
    return bins


def _representative(chosen: int) -> float:
    if chosen == _ZERO:
        return 0.0
    steps = abs(chosen - _ZERO) - 1
    sign = 1.0 if chosen > _ZERO else -1.0
    if steps == 0:
        return sign * LOWEST / 2
    # Equally far, relatively, from both edges of the step.
    return sign * LOWEST * 2 * _GAMMA**steps / (_GAMMA + 1)
