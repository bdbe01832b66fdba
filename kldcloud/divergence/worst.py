"""The positions of a chunk where a candidate is furthest from the base, and what both would say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from kldcloud.divergence.base_rows import BaseRows
from kldcloud.divergence.kernel import TokenStatistics
from kldcloud.divergence.top_tokens import TopTokens, join_tops, top_of_base, top_of_logits

KEPT_A_CHUNK: Final = 32
"""Of a chunk's positions so many keep their top tokens. What is kept must not depend on where
shards begin, so it goes by the chunk; 580 chunks keep 18,560, to find a few hundred among."""


@dataclass(frozen=True, slots=True, eq=False)
class WorstRows:
    """Some positions of one chunk, in order.

    Attributes:
        rows: int32 [n], indices among the chunk's scored positions.
        kld: float64 [n], nats.
        base: the base's top tokens there.
        candidate: the candidate's.
    """

    rows: npt.NDArray[np.int32]
    kld: npt.NDArray[np.float64]
    base: TopTokens
    candidate: TopTokens


def largest_rows(kld: npt.NDArray[np.float64], limit: int) -> npt.NDArray[np.intp]:
    """Ascending indices of the `limit` largest divergences; the earlier one of equals."""
    return np.sort(np.argsort(-kld, kind="stable")[:limit])


def worst_of_piece(
    base: BaseRows,
    logits: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int32],
    statistics: TokenStatistics,
    *,
    first_row: int,
) -> WorstRows:
    """The worst of consecutive positions, while their rows are at hand.

    Args:
        base: n base rows over V tokens.
        logits: float32 [n, V], the candidate's.
        tokens: int32 [n], the token that follows each position.
        statistics: of these positions.
        first_row: of them in their chunk.
    """
    rows = largest_rows(statistics.kld, KEPT_A_CHUNK)
    return WorstRows(
        (rows + first_row).astype(np.int32),
        statistics.kld[rows],
        top_of_base(base, rows, tokens, statistics.nll_base),
        top_of_logits(logits, rows, tokens, statistics.nll),
    )


def worst_of_chunk(pieces: Sequence[WorstRows]) -> WorstRows:
    """The worst of a chunk, from those of its pieces."""
    kld = np.concatenate([each.kld for each in pieces])
    kept = largest_rows(kld, KEPT_A_CHUNK)
    return WorstRows(
        np.concatenate([each.rows for each in pieces])[kept],
        kld[kept],
        join_tops([each.base for each in pieces]).select(kept),
        join_tops([each.candidate for each in pieces]).select(kept),
    )
