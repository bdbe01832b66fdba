"""Means and comoments of the statistics of a chunk, merged chunk by chunk in float64."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

from kldcloud.divergence.records import Floats, TokenRecords

VARIABLES = (
    "kld",
    "reverse_kld",
    "nll",
    "nll_base",
    "entropy_base",
    "probability_change",
    "probability_change_squared",
    "same_top",
)
INDEX = {name: index for index, name in enumerate(VARIABLES)}


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Count, means and sums of products of deviations of k variables.

    Attributes:
        count: positions.
        mean: ``[k]`` float64.
        comoment: ``[k, k]`` float64, symmetric: sums over positions of products of deviations from
            the mean, so variance is its diagonal over ``count - 1``.
    """

    count: int
    mean: Floats
    comoment: Floats

    @classmethod
    def of_nothing(cls, variables: int = len(VARIABLES)) -> Self:
        return cls(0, np.zeros(variables), np.zeros((variables, variables)))

    @classmethod
    def from_values(cls, values: Floats) -> Self:
        """Two passes over ``[k, n]`` values: means first, then products of deviations."""
        variables, count = values.shape
        if count == 0:
            return cls.of_nothing(variables)
        mean = values.sum(axis=1) / count
        return cls(count, mean, cross_products(values - mean[:, np.newaxis]))

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of positions together.

        Pairwise update of Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
        computing sample variances" (1979), for products as for squares. Associative up to
        rounding: whoever needs the same bits again must merge the same pieces in the same order.
        """
        if self.count == 0:
            return other
        if other.count == 0:
            return self
        count = self.count + other.count
        delta = other.mean - self.mean
        weight = self.count * (other.count / count)
        return Moments(
            count,
            self.mean + delta * (other.count / count),
            self.comoment + other.comoment + np.multiply.outer(delta, delta) * weight,
        )


def merge_in_order(chunks: Iterable[Moments], start: Moments | None = None) -> Moments:
    """Merge one chunk at a time, in order: where shards begin then cannot change a bit."""
    total = start or Moments.of_nothing()
    for moments in chunks:
        total = total.merge(moments)
    return total


def chunk_moments(records: TokenRecords) -> tuple[Moments, ...]:
    """Moments of ``VARIABLES`` for each chunk of the records, in order."""
    return tuple(Moments.from_values(_variables(chunk)) for chunk in records.chunks())


def cross_products(rows: Floats) -> Floats:
    """``rows @ rows.T`` for ``[k, n]``, by pairwise sums.

    Not a matrix product: BLAS picks its order of summation by processor and thread count.
    """
    products = np.empty((len(rows), len(rows)))
    for i, row in enumerate(rows):
        for j in range(i + 1):
            products[i, j] = products[j, i] = np.sum(row * rows[j])
    return products


def _variables(records: TokenRecords) -> Floats:
    change = records.probability_change
    return np.stack(
        [
            records.kld,
            records.reverse_kld,
            records.nll,
            records.nll_base,
            records.entropy_base,
            change,
            change * change,
            records.same_top.astype(np.float64),
        ]
    )
