"""How many digits of a number people should see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MISSING: Final = "-"
KLD_DECIMALS: Final = 6  # what llama.cpp prints, so that columns compare by eye
TWO_DIGITS: Final = 0.95e-5  # what has as many in six decimals
_WIDEST_PLAIN: Final = 1e6
_WHOLE: Final = 99.5
_LEAST_GIB: Final = 0.01
"""Below it three decimals are one digit or none."""
_KIB: Final = 1024
_SMALL_UNITS: Final = ("MiB", "KiB", "B")


@dataclass(frozen=True, slots=True)
class Measured:
    """A value and its standard error, in the value's unit; None where there is no number."""

    value: float | None
    error: float | None

    def scaled(self, factor: float) -> Measured:
        """The same measurement in another unit, such as per cent for a share."""
        return Measured(
            value=None if self.value is None else self.value * factor,
            error=None if self.error is None else self.error * factor,
        )


def kld_figure(value: float | None) -> str:
    """A KL divergence in nats with llama.cpp's six decimals; tiny ones keep two digits."""
    if value is None:
        return MISSING
    return f"{value:.1e}" if _is_tiny(value) else _fixed(value, KLD_DECIMALS)


def kld_with_error(measured: Measured) -> str:
    """A KL divergence as `kld_figure` writes it, and its standard error beside it.

    The error has the value's decimals unless that would show nothing.
    """
    if measured.error is None:
        return kld_figure(measured.value)
    error_text = _fixed(measured.error, KLD_DECIMALS)
    if measured.error and (_is_tiny(measured.value) or not float(error_text)):
        error_text = f"{measured.error:.1e}"
    return _joined(kld_figure(measured.value), error_text)


def rounded_to_error(measured: Measured, *, most: int, without_error: int) -> str:
    """Show a value to the second digit of its standard error, and the error beside it.

    Args:
        measured: the value and its error.
        most: never more decimals than this.
        without_error: decimals where the error is unknown or zero.
    """
    if measured.value is None:
        return MISSING
    decimals = without_error
    if measured.error:
        decimals = min(max(1 - _exponent(measured.error), 0), most)
    error_text = MISSING if measured.error is None else _fixed(measured.error, decimals)
    return _joined(_fixed(measured.value, decimals), error_text)


def gib_figure(gib: float | None) -> str:
    """A size in GiB: two decimals, three below one; of next to nothing in a unit that it names."""
    if gib is None:
        return MISSING
    return size_figure(gib) if gib < _LEAST_GIB else _fixed(gib, 2 if gib >= 1 else 3)


def size_figure(gib: float) -> str:
    """A size in GiB as `gib_figure` writes it, with its unit."""
    if gib >= _LEAST_GIB:
        return f"{gib_figure(gib)} GiB"
    size, units = gib * _KIB, iter(_SMALL_UNITS)
    unit = next(units)
    while size < 1 and (smaller := next(units, None)):
        size, unit = size * _KIB, smaller
    return f"{size:.3g} {unit}" if size < _WHOLE else f"{size:.0f} {unit}"


def bits_figure(bits_per_weight: float | None) -> str:
    return MISSING if bits_per_weight is None else _fixed(bits_per_weight, 2)


def floor_figure(times: float | None) -> str:
    """How many times the noise floor: two digits, whole numbers from a hundred to a million."""
    if times is None:
        return MISSING
    return f"{times:,.0f}" if _WHOLE <= times < _WIDEST_PLAIN else f"{times:.2g}"


def _is_tiny(value: float | None) -> bool:
    return value is not None and 0 < abs(value) < TWO_DIGITS


def _joined(value_text: str, error_text: str) -> str:
    # One chunk has no error between chunks: the value then stands alone.
    if MISSING in (value_text, error_text):
        return value_text
    return f"{value_text} \N{PLUS-MINUS SIGN} {error_text}"


def _exponent(number: float) -> int:
    # Through the two-digit text, because 0.0996 rounds up to 0.10.
    return int(f"{abs(number):.1e}".partition("e")[2])


def _fixed(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" if abs(value) < _WIDEST_PLAIN else f"{value:.3e}"
