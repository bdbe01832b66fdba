"""Digits: llama.cpp's six for KLD, elsewhere no more than the error supports."""

from __future__ import annotations

import pytest

from kldcloud.report.rounding import (
    Measured,
    bits_figure,
    gib_figure,
    kld_figure,
    kld_with_error,
    rounded_to_error,
    size_figure,
)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0537349, "0.053735"),
        (11.83488, "11.834880"),
        (0.0, "0.000000"),
        (3.21e-9, "3.2e-09"),
        (-2e-8, "-2.0e-08"),
        (5e-7, "5.0e-07"),
        (6e-7, "6.0e-07"),
        (1.4e-6, "1.4e-06"),
        (-9.4e-6, "-9.4e-06"),
        (9.6e-6, "0.000010"),
        (1e300, "1.000e+300"),
        (None, "-"),
    ],
)
def test_kld_has_six_decimals_unless_those_show_less_than_two_digits(
    value: float | None, shown: str
) -> None:
    assert kld_figure(value) == shown


def test_kld_without_an_error_stands_alone() -> None:
    assert kld_with_error(Measured(0.05, 0.0008)) == "0.050000 ± 0.000800"
    assert kld_with_error(Measured(0.05, None)) == "0.050000"
    assert kld_with_error(Measured(None, 0.1)) == "-"


def test_the_error_of_a_kld_has_its_decimals_unless_they_show_nothing() -> None:
    assert kld_with_error(Measured(0.000123, 0.000004)) == "0.000123 ± 0.000004"
    assert kld_with_error(Measured(0.000123, 4e-8)) == "0.000123 ± 4.0e-08"
    assert kld_with_error(Measured(1.4e-6, 3e-6)) == "1.4e-06 ± 3.0e-06"
    assert kld_with_error(Measured(1.4e-6, 0.0)) == "1.4e-06 ± 0.000000"


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (88.6174, 0.2634, "88.62 ± 0.26"),
        (88.6174, 2.634, "88.6 ± 2.6"),
        (88.6174, 26.34, "89 ± 26"),
        (1.03812, 0.0996, "1.04 ± 0.10"),
        (1.03812, 1e-12, "1.0381 ± 0.0000"),
        (1.03812, 0.0, "1.038 ± 0.000"),
        (1.03812, None, "1.038"),
        (None, None, "-"),
    ],
)
def test_a_value_ends_at_the_second_digit_of_its_error(
    value: float | None, error: float | None, shown: str
) -> None:
    assert rounded_to_error(Measured(value, error), most=4, without_error=3) == shown


def test_sizes_keep_about_three_digits() -> None:
    assert [gib_figure(size) for size in (0.0982, 4.369, None)] == ["0.098", "4.37", "-"]
    assert [size_figure(size) for size in (0.0982, 4.369)] == ["0.098 GiB", "4.37 GiB"]


@pytest.mark.parametrize(
    ("octets", "shown"),
    [
        (10_800_000, "0.010"),
        (10_700_000, "10.2 MiB"),
        (1_600_000, "1.53 MiB"),
        (1 << 20, "1 MiB"),
        ((1 << 20) - 1, "1024 KiB"),
        (319_488, "312 KiB"),
        (2_000, "1.95 KiB"),
        (1_000, "1000 B"),
        (0, "0 B"),
    ],
)
def test_a_small_size_is_in_a_unit_that_it_names(octets: int, shown: str) -> None:
    assert gib_figure(octets / 2**30) == shown
    assert size_figure(octets / 2**30) == (shown if "B" in shown else f"{shown} GiB")
    assert [bits_figure(bits) for bits in (4.8371, None)] == ["4.84", "-"]
