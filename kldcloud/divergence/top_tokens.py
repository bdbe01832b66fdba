"""The most probable tokens of some rows: what base and candidate would have said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from kldcloud.divergence.base_rows import HEADER_WORDS, BaseRows, LogitRows
from kldcloud.divergence.kernel import NO_TOKEN

TOP: Final = 5
_STRETCH: Final = 64

Ints = npt.NDArray[np.int32]
Singles = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class TopTokens:
    """The `TOP` most probable tokens of n positions, the most probable first.

    Attributes:
        tokens: int32 [n, TOP]; of equals the one with the lower number comes first. `NO_TOKEN`
            where a vocabulary has fewer.
        probabilities: float32 [n, TOP].
    """

    tokens: Ints
    probabilities: Singles

    def select(self, rows: npt.NDArray[np.intp]) -> TopTokens:
        """Those of some of the positions."""
        return TopTokens(self.tokens[rows], self.probabilities[rows])


def join_tops(parts: list[TopTokens]) -> TopTokens:
    """Those of several groups of positions, one after the other."""
    return TopTokens(
        np.concatenate([np.empty((0, TOP), np.int32), *(each.tokens for each in parts)]),
        np.concatenate([np.empty((0, TOP), np.float32), *(each.probabilities for each in parts)]),
    )


def top_of_logits(
    logits: Singles, rows: npt.NDArray[np.intp], tokens: Ints, nll: npt.NDArray[np.float64]
) -> TopTokens:
    """Of rows of logits.

    Args:
        logits: float32 [n, V].
        rows: which of them.
        tokens: int32 [n], the token that follows each.
        nll: float64 [n], its negative log-probability, which saves another sum over the row.
    """
    picked, probabilities = _nothing(len(rows))
    for at, row in enumerate(rows):
        best = _largest(logits[row])
        normaliser = nll[row] + float(logits[row, tokens[row]])
        picked[at, : len(best)] = best
        probabilities[at, : len(best)] = np.exp(logits[row, best].astype(np.float64) - normaliser)
    return TopTokens(picked, probabilities)


def top_of_base(
    base: BaseRows, rows: npt.NDArray[np.intp], tokens: Ints, nll: npt.NDArray[np.float64]
) -> TopTokens:
    """Of base rows, in whichever form they are; arguments as for `top_of_logits`.

    Codes give log-probabilities to half a step: 16 nats / 65,535 / 2, so 0.012 % of a probability.
    """
    if isinstance(base, LogitRows):
        return top_of_logits(base.logits, rows, tokens, nll)
    picked, probabilities = _nothing(len(rows))
    for at, row in enumerate(rows):
        words = base.words[row]
        scale, least = np.ascontiguousarray(words[:HEADER_WORDS]).view(np.float32)[:2]
        codes = words[HEADER_WORDS : HEADER_WORDS + base.vocabulary]
        best = _largest(codes)
        picked[at, : len(best)] = best
        kept = float(least) + float(scale) * codes[best].astype(np.float64)
        probabilities[at, : len(best)] = np.exp(np.minimum(kept, 0.0))
    return TopTokens(picked, probabilities)


def _nothing(n: int) -> tuple[Ints, Singles]:
    return np.full((n, TOP), NO_TOKEN, np.int32), np.zeros((n, TOP), np.float32)


def _largest(row: npt.NDArray[np.float32] | npt.NDArray[np.uint16]) -> npt.NDArray[np.intp]:
    """Indices of the `TOP` largest entries, largest first, the lower index first of equals.

    Nothing below the fifth of the maxima of whole stretches can be among them, which leaves a
    handful of entries to sort: a tenth of the time that a partition of the row takes.
    """
    whole = len(row) - len(row) % _STRETCH
    floor = row.min() if whole < TOP * _STRETCH else None
    if floor is None:
        maxima = row[:whole].reshape(-1, _STRETCH).max(axis=1)
        floor = np.partition(maxima, -TOP)[-TOP]
    left = np.flatnonzero(row >= floor)
    order = np.argsort(-row[left].astype(np.float64), kind="stable")
    return left[order[:TOP]]
