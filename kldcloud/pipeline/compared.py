"""One chunk of a candidate against the base: its statistics, and its worst positions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kldcloud.corpus.chunks import Tokens
from kldcloud.divergence.base_rows import BaseRows
from kldcloud.divergence.kernel import TokenStatistics, join_statistics, token_statistics
from kldcloud.divergence.worst import WorstRows, worst_of_chunk, worst_of_piece


@dataclass(frozen=True, slots=True)
class Compared:
    """What one chunk comes to."""

    statistics: TokenStatistics
    worst: WorstRows


def compare_logits(
    base_rows: Iterable[BaseRows],
    logits: npt.NDArray[np.float32],
    next_tokens: Tokens,
    *,
    threads: int,
    llama_compat: bool,
) -> Compared:
    """A chunk's statistics from the candidate's logits, the base's rows piece by piece.

    Args:
        base_rows: the base's rows of the chunk, in order.
        logits: float32 [rows, V], the candidate's.
        next_tokens: int32 [rows], the token that follows each position.
        threads: for the kernel.
        llama_compat: also follow llama.cpp's arithmetic.

    Raises:
        FormatError: the frame is damaged, or another model's.
        EngineError: a logit is not finite.
    """
    parts, worst = [], []
    at = 0
    for base in base_rows:
        part = slice(at, at + base.rows)
        found = token_statistics(
            base,
            logits[part],
            next_tokens[part],
            threads=threads,
            llama_compat=llama_compat,
            first_row=at,
        )
        parts.append(found)
        worst.append(worst_of_piece(base, logits[part], next_tokens[part], found, first_row=at))
        at += base.rows
    return Compared(join_statistics(parts), worst_of_chunk(worst))
