"""The kernel again in float64 numpy: what to read first, and the fallback without numba.

Same contract as `rows_numba`; a few rows at a time, so that memory stays a small multiple of a row.
About ten times slower, and no less exact.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kldcloud.divergence.base_rows import (
    CLAMP_NATS,
    HEADER_WORDS,
    BaseRows,
    CodeRows,
    LogitRows,
    words_per_row,
)

F4 = npt.NDArray[np.float32]
F8 = npt.NDArray[np.float64]
U2 = npt.NDArray[np.uint16]

ROWS_AT_ONCE = 4


def statistics_of_rows(
    base: BaseRows,
    logits: F4,
    tokens: npt.NDArray[np.int32],
    start: int,
    stop: int,
    out: F8,
    tops: npt.NDArray[np.int32],
    llama: bool,
) -> None:
    """Fill rows start..stop of `out` (float64 [n, 8]) and `tops` (int32 [n, 3]); see `kernel`."""
    for at in range(start, stop, ROWS_AT_ONCE):
        part = slice(at, min(at + ROWS_AT_ONCE, stop))
        x, t = logits[part], tokens[part]
        finite = np.isfinite(x).all(axis=1)
        tops[part, 0] = np.where(finite, x.argmax(axis=1), -1)
        with np.errstate(all="ignore"):
            if isinstance(base, LogitRows):
                tops[part, 1] = base.logits[part].argmax(axis=1)
                _from_logits(base.logits[part], x, t, out[part])
                words = np.empty((len(x), words_per_row(base.vocabulary)), np.uint16)
                if llama:
                    _encode(base.logits[part], words)
            else:
                words = base.words[part]
                tops[part, 1] = words[:, HEADER_WORDS : HEADER_WORDS + x.shape[1]].argmax(axis=1)
                _from_codes(base, part, x, t, out[part])
            if llama:
                tops[part, 2] = _clamped(words, x, t, out[part])


def encode_rows(
    logits: F4,
    tokens: npt.NDArray[np.int32],
    start: int,
    stop: int,
    words: U2,
    extras: F8,
    top: npt.NDArray[np.int32],
) -> None:
    """Fill rows start..stop of `words`, `extras` ([n, 4]) and `top`; see `kernel.encode`."""
    vocabulary = logits.shape[1]
    for at in range(start, stop, ROWS_AT_ONCE):
        part = slice(at, min(at + ROWS_AT_ONCE, stop))
        x = logits[part]
        finite = np.isfinite(x).all(axis=1)
        with np.errstate(all="ignore"):
            _encode(x, words[part])
            lp = _log_softmax(x)
            p = np.exp(lp)
            codes = words[part, HEADER_WORDS : HEADER_WORDS + vocabulary]
            extras[part, 0] = -lp.max(axis=1)
            extras[part, 1] = np.where(codes == 0, p, 0).sum(axis=1)
            extras[part, 2] = _pick(lp, tokens[part])
            extras[part, 3] = -(p * lp).sum(axis=1)
        top[part] = np.where(finite, x.argmax(axis=1), -1)


def _from_logits(b: F4, x: F4, tokens: npt.NDArray[np.int32], out: F8) -> None:
    lp, lq = _log_softmax(b), _log_softmax(x)
    p, q = np.exp(lp), np.exp(lq)
    out[:, 0] = (p * (lp - lq)).sum(axis=1)
    out[:, 1] = (q * (lq - lp)).sum(axis=1)
    out[:, 2] = -_pick(lq, tokens)
    out[:, 3] = -_pick(lp, tokens)
    out[:, 4] = -(p * lp).sum(axis=1)


def _from_codes(base: CodeRows, part: slice, x: F4, tokens: npt.NDArray[np.int32], out: F8) -> None:
    words = base.words[part]
    scale, low = _header(words)
    codes = words[:, HEADER_WORDS : HEADER_WORDS + base.vocabulary]
    # A row of equal logits has scale 0 and only codes 0: all of it counts as told apart.
    kept = (codes > 0) | (scale[:, None] == 0)
    lp = scale[:, None].astype(np.float64) * codes + low[:, None].astype(np.float64)
    p = np.where(kept, np.exp(lp), 0)
    mass = p.sum(axis=1)
    if base.extras is not None:
        tail, target = base.extras.tail[part], base.extras.target[part]
    else:
        clamped = np.where(kept, 0, np.exp(lp)).sum(axis=1)
        tail = np.minimum(np.maximum(1 - mass, 0), clamped)
        target = _pick(lp, tokens)
    tail = np.where(scale == 0, 0.0, tail)
    lq = _log_softmax(x)
    q = np.exp(lq)
    share = np.where(kept, 0, q).sum(axis=1)
    log_share, log_rest = _log_sum(lq, ~kept), _log_sum(lq, kept)
    p /= mass[:, None]
    conditional_p = lp - np.log(mass)[:, None]
    difference = np.where(kept, conditional_p - (lq - log_rest[:, None]), 0)
    out[:, 0] = (1 - tail) * (p * difference).sum(axis=1)
    out[:, 1] = -(np.where(kept, q, 0) * difference).sum(axis=1)
    out[:, 2] = -_pick(lq, tokens)
    out[:, 3] = -target
    out[:, 4] = -(1 - tail) * np.where(kept, p * conditional_p, 0).sum(axis=1)
    out[:, 4] -= np.where(tail > 0, tail * np.log(tail), 0) + (1 - tail) * np.log1p(-tail)
    between, told = tail, tail >= 0
    if base.extras is None:
        # See `codes_numba`: the mass nearest to the candidate's that the codes leave room for.
        between = (~kept).sum(axis=1) * np.exp(low.astype(np.float64) + scale / 2)
        told = share > between
    out[:, 0] += np.where(told, _binary(between, log_share, log_rest), 0)
    back = _binary(share, np.log(between), np.log1p(-between))
    out[:, 1] += np.where(told & ((between > 0) | (share == 0)), back, 0)


def _binary(t: F8, log_q: F8, log_rest: F8) -> F8:
    """Divergence of tails, t ln(t/q) + (1-t) ln((1-t)/(1-q)), of logarithms of q and of 1-q."""
    rest = np.where(t < 1, (1 - t) * (np.log1p(-t) - log_rest), 0)
    return np.where(t > 0, t * (np.log(t) - log_q), 0) + rest


def _log_sum(lq: F8, chosen: npt.NDArray[np.bool_]) -> F8:
    """Logarithm of the mass of the chosen entries of each row; -inf where none is."""
    among = np.where(chosen, lq, -np.inf)
    largest = among.max(axis=1)
    anchored = np.exp(among - np.where(np.isfinite(largest), largest, 0.0)[:, None])
    found: F8 = largest + np.log(anchored.sum(axis=1))
    return found


def _float_exp(x: F4) -> F4:
    rounded: F4 = np.exp(x.astype(np.float64)).astype(np.float32)
    return rounded


def _float_lse(x: F4, largest: F4) -> F4:
    terms = _float_exp(x - largest[:, None])
    rounded: F4 = np.log(terms.sum(axis=1, dtype=np.float64)).astype(np.float32)
    return rounded


def _encode(x: F4, words: U2) -> None:
    """llama.cpp's encoder, one float32 operation at a time; see `llama_numba.encode_row`."""
    largest = x.max(axis=1)
    smallest = np.maximum(x.min(axis=1), largest - np.float32(CLAMP_NATS))
    scale = (largest - smallest) / np.float32(65535)
    header = words[:, :HEADER_WORDS].copy().view(np.float32)
    header[:, 0] = scale
    header[:, 1] = (smallest - largest) - _float_lse(x, largest)
    words[:, :HEADER_WORDS] = header.view(np.uint16)
    words[:, HEADER_WORDS:] = 0
    inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    codes = np.rint(inverse[:, None] * (x - smallest[:, None]))
    above = np.where(x > smallest[:, None], codes, 0)
    words[:, HEADER_WORDS : HEADER_WORDS + x.shape[1]] = above.astype(np.int32)


def _clamped(words: U2, x: F4, tokens: npt.NDArray[np.int32], out: F8) -> npt.NDArray[np.int64]:
    """llama.cpp's statistics, one float32 operation at a time; see `llama_numba.clamped_row`."""
    scale, low = _header(words)
    codes = words[:, HEADER_WORDS : HEADER_WORDS + x.shape[1]]
    largest = x.max(axis=1)
    lse = largest + _float_lse(x, largest)
    lp = scale[:, None] * codes.astype(np.float32) + low[:, None]
    terms = _float_exp(lp) * ((lp - x) + lse[:, None])
    out[:, 5] = np.where(lp > np.float32(-CLAMP_NATS), terms, 0).sum(axis=1, dtype=np.float64)
    out[:, 6] = lse - _pick(x, tokens)
    out[:, 7] = -(scale * _pick(codes, tokens).astype(np.float32) + low)
    top: npt.NDArray[np.int64] = lp.argmax(axis=1)
    return top


def _header(words: U2) -> tuple[F4, F4]:
    header = np.ascontiguousarray(words[:, :HEADER_WORDS]).view(np.float32)
    return header[:, 0], header[:, 1]


def _log_softmax(x: F4) -> F8:
    shifted = x.astype(np.float64) - x.max(axis=1, keepdims=True)
    result: F8 = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _pick(values: npt.NDArray, tokens: npt.NDArray[np.int32]) -> npt.NDArray:  # type: ignore[type-arg]
    return values[np.arange(len(tokens)), tokens]
