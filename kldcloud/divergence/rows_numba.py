"""Runs of rows through the numba kernels: the loops that hold no GIL."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from kldcloud.divergence.base_rows import BaseRows, LogitRows, words_per_row
from kldcloud.divergence.codes_numba import codes_row
from kldcloud.divergence.llama_numba import clamped_row, encode_row, row_extras
from kldcloud.divergence.row_numba import logits_row


@njit(nogil=True, error_model="numpy", cache=True)
def _logits_rows(base, x, tokens, start, stop, out, tops, scratch, llama):
    for i in range(start, stop):
        top, base_top = logits_row(x[i], base[i], tokens[i], out[i, :5])
        tops[i, 0] = top
        tops[i, 1] = base_top
        if llama and top >= 0:
            encode_row(base[i], scratch)
            tops[i, 2] = clamped_row(x[i], scratch, tokens[i], top, out[i, 5:])


@njit(nogil=True, error_model="numpy", cache=True)
def _codes_rows(words, tail, target, has_extras, x, tokens, start, stop, out, tops, llama):
    for i in range(start, stop):
        t = tail[i] if has_extras else 0.0
        lp = target[i] if has_extras else 0.0
        top, base_top = codes_row(x[i], words[i], tokens[i], t, lp, has_extras, out[i, :5])
        tops[i, 0] = top
        tops[i, 1] = base_top
        if llama and top >= 0:
            tops[i, 2] = clamped_row(x[i], words[i], tokens[i], top, out[i, 5:])


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
    if isinstance(base, LogitRows):
        scratch = np.empty(words_per_row(base.vocabulary), np.uint16)
        _logits_rows(base.logits, logits, tokens, start, stop, out, tops, scratch, llama)
        return
    extras = base.extras
    tail, target = (extras.tail, extras.target) if extras else (_NOTHING, _NOTHING)
    _codes_rows(
        base.words, tail, target, extras is not None,
        logits, tokens, start, stop, out, tops, llama,
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
    """Fill rows start..stop of `words`, `extras` (float64 [n, 4]) and `top`; see `kernel.encode`."""
    _encode_rows(logits, tokens, start, stop, words, extras, top)
