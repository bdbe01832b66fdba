"""Base rows, candidate logits and next tokens in; statistics of each position out.

The numba kernel runs over rows in threads without the GIL; `row_numpy` says the same things
readably in float64 and takes over where numba does not load (KLDCLOUD_KERNEL=numpy forces it).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from types import ModuleType

import numpy as np
import numpy.typing as npt

from kldcloud.divergence.base_rows import BaseRows, CodeRows, LogitRows, RowExtras, words_per_row
from kldcloud.errors import EngineError, FormatError

NO_TOKEN = -1

NUMERICS_VERSION = 2
"""Raise it with any change that moves a statistic: it is part of every run's id."""


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """Statistics of n positions for one candidate; nats, one entry a position.

    Attributes:
        kld: float64, exact KL(base || candidate); for 16-nat codes see `codes_numba`.
        reverse_kld: float64, KL(candidate || base).
        nll: float64, -ln q(next token) under the candidate.
        nll_base: float64, the same under the base.
        entropy_base: float64.
        top: int32, first maximum of the candidate.
        top_base: int32, first maximum of the base.
        llama_kld: float64, llama.cpp's clamped divergence; NaN if not asked for, as all llama_*.
        llama_nll: float32, llama.cpp's NLL.
        llama_nll_base: float32, llama.cpp's base NLL, from the code of the next token.
        llama_top_base: int32, first maximum of the base's codes; -1 if not asked for.
    """

    kld: npt.NDArray[np.float64]
    reverse_kld: npt.NDArray[np.float64]
    nll: npt.NDArray[np.float64]
    nll_base: npt.NDArray[np.float64]
    entropy_base: npt.NDArray[np.float64]
    top: npt.NDArray[np.int32]
    top_base: npt.NDArray[np.int32]
    llama_kld: npt.NDArray[np.float64]
    llama_nll: npt.NDArray[np.float32]
    llama_nll_base: npt.NDArray[np.float32]
    llama_top_base: npt.NDArray[np.int32]


@cache
def implementation() -> ModuleType:
    """The module that does rows: numba's, or numpy's where numba is missing or refused."""
    from kldcloud.divergence import row_numpy

    if os.environ.get("KLDCLOUD_KERNEL", "numba") == "numpy":
        return row_numpy
    try:
        from kldcloud.divergence import rows_numba
    except ImportError:
        return row_numpy
    return rows_numba


def token_statistics(
    base: BaseRows,
    logits: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int32],
    *,
    threads: int = 1,
    llama_compat: bool = True,
    first_row: int = 0,
) -> TokenStatistics:
    """Statistics of every position of a chunk.

    Args:
        base: n base rows over V tokens.
        logits: float32 [n, V], the candidate's.
        tokens: int32 [n], the token that follows each position.
        threads: rows are divided among this many.
        llama_compat: also follow llama.cpp's arithmetic; base logits are then encoded on the fly.
        first_row: of these in their chunk, for messages.

    Raises:
        FormatError: if base and candidate disagree in rows or vocabulary, or a token is none.
        EngineError: if a candidate logit is NaN or infinite.
    """
    n, vocabulary = logits.shape
    refuse_misfits(base.rows, base.vocabulary, n, vocabulary, tokens)
    out = np.full((n, 8), np.nan)
    tops = np.full((n, 3), NO_TOKEN, np.int32)

    def run(start: int, stop: int) -> None:
        implementation().statistics_of_rows(
            base, logits, tokens, start, stop, out, tops, llama_compat
        )

    _over_rows(run, n, threads)
    refuse_broken("candidate", tops[:, 0] < 0, first_row)
    entropy, top_base = out[:, 4], tops[:, 1]
    if isinstance(base, CodeRows) and base.extras is not None:
        entropy, top_base = base.extras.entropy, base.extras.top
    return TokenStatistics(
        kld=out[:, 0].copy(),
        reverse_kld=out[:, 1].copy(),
        nll=out[:, 2].copy(),
        nll_base=out[:, 3].copy(),
        entropy_base=np.array(entropy, np.float64),
        top=tops[:, 0].copy(),
        top_base=np.array(top_base, np.int32),
        llama_kld=out[:, 5].copy(),
        llama_nll=out[:, 6].astype(np.float32),
        llama_nll_base=out[:, 7].astype(np.float32),
        llama_top_base=tops[:, 2].copy(),
    )


def join_statistics(parts: Sequence[TokenStatistics]) -> TokenStatistics:
    """Statistics of consecutive positions, put together."""
    names = TokenStatistics.__slots__
    return TokenStatistics(*(np.concatenate([getattr(p, n) for p in parts]) for n in names))


def encode(
    logits: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int32],
    *,
    threads: int = 1,
    first_row: int = 0,
) -> CodeRows:
    """16-nat codes of base logits, as llama.cpp writes them, with what they lose kept beside.

    Args:
        logits: float32 [n, V].
        tokens: int32 [n], the token that follows each position.
        threads: rows are divided among this many.
        first_row: of these in their chunk, for messages.

    Raises:
        EngineError: if a logit is NaN or infinite.
    """
    n, vocabulary = logits.shape
    words = np.empty((n, words_per_row(vocabulary)), np.uint16)
    extras = np.empty((n, 4))
    top = np.empty(n, np.int32)

    def run(start: int, stop: int) -> None:
        implementation().encode_rows(logits, tokens, start, stop, words, extras, top)

    _over_rows(run, n, threads)
    refuse_broken("base", top < 0, first_row)
    normaliser, tail, target, entropy = (extras[:, i].copy() for i in range(4))
    return CodeRows(words, vocabulary, RowExtras(normaliser, tail, target, entropy, top))


def as_codes(base: BaseRows, tokens: npt.NDArray[np.int32], *, threads: int = 1) -> CodeRows:
    """Any base rows as codes: what a .kld file holds."""
    if isinstance(base, LogitRows):
        return encode(base.logits, tokens, threads=threads)
    return base


def refuse_misfits(
    base_rows: int,
    base_vocabulary: int,
    rows: int,
    vocabulary: int,
    tokens: npt.NDArray[np.int32],
) -> None:
    """Refuse a base and a candidate, or next tokens, that cannot belong together.

    Raises:
        FormatError: they disagree in rows or vocabulary, or a token is none.
    """
    if base_rows != rows or base_vocabulary != vocabulary or tokens.shape != (rows,):
        raise FormatError(
            f"base has {base_rows} rows over {base_vocabulary} tokens, "
            f"candidate {rows} over {vocabulary}",
            hint="base and candidate must share tokenizer and corpus",
        )
    if rows and not (int(tokens.min()) >= 0 and int(tokens.max()) < vocabulary):
        raise FormatError(f"a next token lies outside the vocabulary of {vocabulary}")


def refuse_broken(side: str, broken: npt.NDArray[np.bool_], first_row: int) -> None:
    """Refuse logits of which a row is broken.

    Raises:
        EngineError: one is.
    """
    at = np.flatnonzero(broken)
    if at.size:
        raise EngineError(
            f"{side} logits are not finite at scored position {first_row + at[0]} of the "
            f"chunk ({at.size} of {broken.size} positions)",
            hint="the model file is damaged, or its backend overflows",
        )


def _over_rows(run: Callable[[int, int], None], rows: int, threads: int) -> None:
    if threads <= 1 or rows < threads:
        run(0, rows)
        return
    # Several slices a thread: rows cost about the same, cores (shared ones) do not.
    cuts = np.linspace(0, rows, 4 * threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(run, int(a), int(b)) for a, b in pairwise(cuts)]:
            done.result()
