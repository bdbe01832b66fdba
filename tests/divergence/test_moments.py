"""Moments: against plain numpy, and merged in pieces of any size."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_records import records

from kldcloud.divergence.moments import (
    INDEX,
    VARIABLES,
    Moments,
    chunk_moments,
    cross_products,
    merge_in_order,
)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.max(np.abs(a - b) / np.maximum(np.abs(b), 1e-300)))


def test_moments_of_a_chunk_match_numpy() -> None:
    source = records(1, rows=200)
    (found,) = chunk_moments(source)
    change = np.exp(-source.nll) - np.exp(-source.nll_base)
    values = np.stack(
        [
            source.kld,
            source.reverse_kld,
            source.nll,
            source.nll_base,
            source.entropy_base,
            change,
            change**2,
            source.top == source.top_base,
        ]
    )
    assert found.count == 200
    assert len(VARIABLES) == len(values)
    np.testing.assert_allclose(found.mean, values.mean(axis=1), rtol=1e-13)
    np.testing.assert_allclose(found.comoment / 199, np.cov(values), rtol=1e-11, atol=1e-15)
    assert np.array_equal(found.comoment, found.comoment.T)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("pieces", [2, 97, 1000])
def test_merged_moments_match_two_passes_over_everything(offset: float, pieces: int) -> None:
    values = np.random.default_rng(1).normal(size=(3, 50_000)) + offset
    parts = [Moments.from_values(part) for part in np.array_split(values, pieces, axis=1)]
    merged = merge_in_order(parts)
    # The reference is summed in extended precision: float64 numpy would be no better than ours.
    exact = values.astype(np.longdouble)
    deviations = exact - exact.mean(axis=1, keepdims=True)
    assert merged.count == values.shape[1]
    assert np.abs(merged.mean - exact.mean(axis=1)).max() <= 2e-12 * max(offset, 1.0)
    variance = np.array([np.sum(row * row) for row in deviations])
    bound = 2e-12 if offset < 1e6 else 2e-11
    assert relative(np.diag(merged.comoment), variance) < bound


def test_merging_is_associative_up_to_rounding_and_knows_nothing() -> None:
    parts = chunk_moments(records(9, seed=3))
    forward = merge_in_order(parts)
    left, right = merge_in_order(parts[:4]), merge_in_order(parts[4:])
    grouped = left.merge(right)
    assert relative(grouped.mean, forward.mean) < 2e-12
    np.testing.assert_allclose(grouped.comoment, forward.comoment, rtol=2e-12, atol=1e-15)
    nothing = Moments.of_nothing()
    assert nothing.merge(left) is left
    assert left.merge(nothing) is left


def test_merging_in_order_from_a_start_is_bit_identical() -> None:
    parts = chunk_moments(records(8, seed=4))
    whole = merge_in_order(parts)
    again = merge_in_order(parts[5:], merge_in_order(parts[:5]))
    assert np.array_equal(whole.mean, again.mean)
    assert np.array_equal(whole.comoment, again.comoment)


def test_identical_columns_have_a_difference_without_variance() -> None:
    source = records(6)
    source.nll[:] = source.nll_base
    total = merge_in_order(chunk_moments(source))
    i, j = INDEX["nll"], INDEX["nll_base"]
    assert total.comoment[i, i] == total.comoment[i, j] == total.comoment[j, j]


def test_cross_products_are_the_matrix_product() -> None:
    rows = np.random.default_rng(2).normal(size=(4, 1001))
    np.testing.assert_allclose(cross_products(rows), rows @ rows.T, rtol=1e-12, atol=1e-10)
