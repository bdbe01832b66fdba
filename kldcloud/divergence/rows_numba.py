"""Runs of rows through the numba kernels: the loops that hold no GIL."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from kldcloud.divergence.base_rows import BaseRows, LogitRows, words_per_row
from kldcloud.divergence.codes_numba import codes_row
from kldcloud.divergence.kept_numba import SLACK, pack
from kldcloud.divergence.llama_numba import UNKNOWN, clamped_row, encode_row, row_extras
from kldcloud.divergence.row_numba import first_top_code, logits_row


@njit(nogil=True, error_model="numpy", cache=True)
def _logits_rows(base, x, tokens, start, stop, out, tops, words, packed, llama):
    n = x.shape[1]
    for i in range(start, stop):
        top, base_top = logits_row(x[i], base[i], tokens[i], out[i, :5])
        tops[i, 0] = top
        tops[i, 1] = base_top
        if llama and top >= 0:
            encode_row(base[i], words)
            c = words[4 : 4 + n]
            kept = pack(x[i], c, packed[0], packed[1], 0)
            tops[i, 2] = clamped_row(
                x[i], words, tokens[i], top, first_top_code(c),
                packed, kept, UNKNOWN, out[i, 5:],
            )  # fmt: skip


@njit(nogil=True, error_model="numpy", cache=True)
def _codes_rows(words, tail, target, has_extras, x, tokens, start, stop, out, tops, packed, llama):
    for i in range(start, stop):
        t = tail[i] if has_extras else 0.0
        lp = target[i] if has_extras else 0.0
        top, base_top, kept, rest = codes_row(
            x[i], words[i], tokens[i], t, lp, has_extras, packed[0], packed[1], out[i, :5]
        )
        tops[i, 0] = top
        tops[i, 1] = base_top
        if llama and top >= 0:
            tops[i, 2] = clamped_row(
                x[i], words[i], tokens[i], top, base_top,
                packed, kept, rest, out[i, 5:],
            )  # fmt: skip


@njit(nogil=True, error_model="numpy", cache=True)
def _encode_rows(x, tokens, start, stop, words, extras, top):
    for i in range(start, stop):
        encode_row(x[i], words[i])
        top[i] = row_extras(x[i], words[i], tokens[i], extras[i])


_NOTHING = np.empty(0)


def statistics_of_rows(
    base: BaseRows,
    logits: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int32],
    start: int,
    stop: int,
    out: npt.NDArray[np.float64],
    tops: npt.NDArray[np.int32],
    llama: bool,
) -> None:
    """Fill rows start..stop of `out` (float64 [n, 8]) and `tops` (int32 [n, 3]); see `kernel`."""
    packed = np.empty((4, base.vocabulary + SLACK), np.float32)
    if isinstance(base, LogitRows):
        words = np.empty(words_per_row(base.vocabulary), np.uint16)
        _logits_rows(base.logits, logits, tokens, start, stop, out, tops, words, packed, llama)
        return
    extras = base.extras
    tail, target = (extras.tail, extras.target) if extras else (_NOTHING, _NOTHING)
    _codes_rows(
        base.words, tail, target, extras is not None,
        logits, tokens, start, stop, out, tops, packed, llama,
    )  # fmt: skip


def encode_rows(
    logits: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int32],
    start: int,
    stop: int,
    words: npt.NDArray[np.uint16],
    extras: npt.NDArray[np.float64],
    top: npt.NDArray[np.int32],
) -> None:
    """Fill rows start..stop of `words`, `extras` ([n, 4]) and `top`; see `kernel.encode`."""
    _encode_rows(logits, tokens, start, stop, words, extras, top)
