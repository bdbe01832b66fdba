"""The formulas again, in plain numpy and as slow as they like: what the fast kernels must equal.

Two kinds: float64 throughout (the truth), and float32 as llama.cpp's tool computes it, operation by
operation, on a machine that does not fuse multiply and add (the tool is built for baseline x86-64).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Uint16 = npt.NDArray[np.uint16]

F32 = np.float32


def float64_token_statistics(
    base_logits: Float32, candidate_logits: Float32, tokens: npt.NDArray[np.integer]
) -> dict[str, npt.NDArray[Any]]:
    """Exact statistics of each scored position, in nats.

    Args:
        base_logits: float32 ``[n, V]``.
        candidate_logits: float32 ``[n, V]``.
        tokens: the next token of each position, ``[n]``.

    Returns:
        float64 ``[n]``: kld (base || candidate), reverse_kld, nll, nll_base, entropy_base; int64
        ``[n]``: top, top_base (the first of equal maxima).
    """
    log_base, log_candidate = _log_softmax(base_logits), _log_softmax(candidate_logits)
    at = np.arange(len(tokens))
    return {
        "kld": (np.exp(log_base) * (log_base - log_candidate)).sum(axis=1),
        "reverse_kld": (np.exp(log_candidate) * (log_candidate - log_base)).sum(axis=1),
        "nll": -log_candidate[at, tokens],
        "nll_base": -log_base[at, tokens],
        "entropy_base": -(np.exp(log_base) * log_base).sum(axis=1),
        "top": candidate_logits.argmax(axis=1),
        "top_base": base_logits.argmax(axis=1),
    }


def encode_kld_rows(base_logits: Float32) -> Uint16:
    """Rows of a .kld file from logits, as llama.cpp's encoder writes them.

    Args:
        base_logits: float32 ``[n, V]``.

    Returns:
        uint16 ``[n, 2 * ceil(V / 2) + 4]``; the unused code of an odd V is 0.
    """
    n, vocabulary = base_logits.shape
    top = base_logits.max(axis=1, keepdims=True)
    floor = np.maximum(base_logits.min(axis=1, keepdims=True), top - F32(16))
    minimum = (floor - top) - _log_sum_exp(base_logits)
    scale = (top - floor) / F32(65535)
    # A row of equal logits has scale 0 and only zero codes.
    inverse = F32(1) / np.where(scale > 0, scale, F32(1))
    codes = np.where(base_logits > floor, np.rint(inverse * (base_logits - floor)), F32(0))
    rows = np.zeros((n, 2 * ((vocabulary + 1) // 2) + 4), dtype=np.uint16)
    rows[:, 0:2] = scale.view(np.uint16)
    rows[:, 2:4] = minimum.view(np.uint16)
    rows[:, 4 : 4 + vocabulary] = np.where(scale > 0, codes, F32(0)).astype(np.uint16)
    return rows


def decode_kld_rows(rows: Uint16, vocabulary: int) -> Float32:
    """Log-probabilities (nats) float32 ``[n, V]`` of .kld rows, rounded as the tool rounds them."""
    scale, minimum = _scale_and_minimum(rows)
    return scale * rows[:, 4 : 4 + vocabulary].astype(np.float32) + minimum


def llama_token_statistics(
    rows: Uint16, candidate_logits: Float32, tokens: npt.NDArray[np.integer], vocabulary: int
) -> dict[str, npt.NDArray[Any]]:
    """Statistics of each scored position as llama-perplexity computes them.

    Args:
        rows: uint16 ``[n, 2 * ceil(V / 2) + 4]``, the base's.
        candidate_logits: float32 ``[n, V]``.
        tokens: the next token of each position, ``[n]``.
        vocabulary: V.

    Returns:
        float64 ``[n]`` kld (a double sum of float terms; the tool's quantiles round it to float);
        float32 ``[n]`` nll, nll_base, p_diff; bool ``[n]`` same_top.
    """
    at = np.arange(len(tokens))
    log_base = decode_kld_rows(rows, vocabulary)
    top = candidate_logits.max(axis=1, keepdims=True)
    log_sum = _log_sum_exp(candidate_logits)
    nll = ((top + log_sum)[:, 0] - candidate_logits[at, tokens]).astype(np.float32)
    nll_base = -log_base[at, tokens]
    terms = _expf(log_base) * ((log_base - candidate_logits) + (top + log_sum))
    counted = np.where(log_base > F32(-16), terms, F32(0))
    return {
        "kld": _sum_in_order(counted),
        "nll": nll,
        "nll_base": nll_base,
        "p_diff": _expf(-nll) - _expf(-nll_base),
        "same_top": candidate_logits.argmax(axis=1) == log_base.argmax(axis=1),
    }


def _log_softmax(logits: Float32) -> Float64:
    exact = logits.astype(np.float64)
    shifted: Float64 = exact - exact.max(axis=1, keepdims=True)
    total: Float64 = np.exp(shifted).sum(axis=1, keepdims=True)
    return shifted - np.log(total)


def _expf(values: Float32) -> Float32:
    # glibc's expf and this differ at most in the last place, and rarely.
    return np.exp(values.astype(np.float64)).astype(np.float32)


def _sum_in_order(terms: Float32) -> Float64:
    # cumsum adds from left to right, as a loop in C does; sum would add in pairs.
    running: Float64 = terms.astype(np.float64).cumsum(axis=1)
    return running[:, -1]


def _log_sum_exp(logits: Float32) -> Float32:
    terms = _expf(logits - logits.max(axis=1, keepdims=True))
    return np.log(_sum_in_order(terms)).astype(np.float32)[:, None]


def _scale_and_minimum(rows: Uint16) -> tuple[Float32, Float32]:
    prefix = np.ascontiguousarray(rows[:, :4]).view(np.float32)
    return prefix[:, 0:1], prefix[:, 1:2]
