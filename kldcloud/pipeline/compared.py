"""One chunk of a candidate against the base: its statistics, and its worst positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kldcloud.corpus.chunks import Tokens
from kldcloud.divergence.kernel import TokenStatistics, join_statistics, token_statistics
from kldcloud.divergence.worst import WorstRows, worst_of_chunk, worst_of_piece
from kldcloud.models.engine import Engine
from kldcloud.staging.encodings import Encoding


@dataclass(frozen=True, slots=True)
class Compared:
    """What one chunk comes to."""

    statistics: TokenStatistics
    worst: WorstRows


def compare_logits(
    encoding: Encoding,
    frame: bytes | memoryview,
    logits: npt.NDArray[np.float32],
    next_tokens: Tokens,
    *,
    threads: int,
    llama_compat: bool,
) -> Compared:
    """A chunk's statistics from the candidate's logits, the base's rows decoded piece by piece.

    Args:
        encoding: of the base stage.
        frame: the base's rows of the chunk.
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
    for base in encoding.pieces(frame):
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


def evaluated(engine: Engine, chunks: Sequence[Tokens]) -> Iterator[npt.NDArray[np.float32]]:
    """The logits of chunk after chunk; valid until the next is asked for.

    Where a GPU evaluates, it is a chunk ahead: it goes on while the CPU compares.
    """
    if not engine.on_gpu:
        for chunk in chunks:
            yield engine.evaluate(chunk).logits
        return
    room: list[npt.NDArray[np.float32]] = []

    def ready(at: int) -> npt.NDArray[np.float32]:
        logits = engine.evaluate(chunks[at]).logits
        if engine.kept >= _BUFFERS:
            return logits
        if len(room) < _BUFFERS:
            room.append(np.empty_like(logits))
        # The engine's own buffer is overwritten by the next chunk.
        np.copyto(room[at % _BUFFERS], logits)
        return room[at % _BUFFERS]

    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(ready, 0) if chunks else None
        for at in range(len(chunks)):
            assert coming is not None  # noqa: S101 - there is a chunk
            here = coming.result()
            coming = ahead.submit(ready, at + 1) if at + 1 < len(chunks) else None
            yield here


_BUFFERS = 2
"""One that is compared and one that is filled."""
