"""How fast the base is on this machine, from pieces of one chunk and in bounded time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import takewhile
from typing import Final

import numpy as np

from kldcloud.corpus.chunks import Tokens
from kldcloud.estimate.numbers import Rate
from kldcloud.models.engines import load_engine
from kldcloud.models.llama_engine import LlamaOptions
from kldcloud.models.llama_timing import evaluation_seconds
from kldcloud.pipeline.model_files import Model
from kldcloud.pipeline.options import Engines
from kldcloud.pipeline.progress import Progress

LIMIT: Final = 60.0
"""Seconds within which a piece has to seem to fit; the first is evaluated whatever it takes."""
_WARM_UP: Final = 128
"""Tokens of the first piece, which brings the weights into memory."""
_FIRST: Final = 512
"""Tokens of the shortest piece that counts: llama.cpp's micro-batch, in which it does a chunk."""


def calibrated(
    base: Model,
    chunk: Tokens,
    texts: Mapping[int, int],
    runs: Engines,
    threads: int,
    progress: Progress,
) -> Rate:
    """Time the base on pieces of a chunk, each twice as long as the one before, within `LIMIT`.

    Attention makes a token of a chunk dearer by an amount that grows with the chunk's length, so
    seconds a token are a straight line in that length: beyond the longest piece it is followed.

    Args:
        base: the model.
        chunk: int32 [n], one of the longest chunks.
        texts: tokens that will be evaluated, by the length of their chunks; the longest is n.
        runs: how models are run.
        threads: of one worker.
        progress: is told that this takes a while.
    """
    progress.note("calibrating on one chunk")
    start = time.perf_counter()
    lengths = _lengths(len(chunk))
    warm_up = min(_WARM_UP, lengths[0])
    each = _seconds(base, chunk[:warm_up], runs, threads) / warm_up
    measured: dict[int, float] = {}
    for length in lengths:
        likely = length * (_a_token(measured, length) if measured else each)
        if time.perf_counter() - start + likely > LIMIT:
            break
        measured[length] = _seconds(base, chunk[:length], runs, threads) / length
    if not measured:
        reading = "with the reading of its weights"
        return Rate(1 / each, f"measured on {warm_up} tokens of a chunk of the base, {reading}")
    seconds = sum(tokens * _a_token(measured, length) for length, tokens in texts.items())
    return Rate(sum(texts.values()) / seconds, _basis(tuple(measured), len(chunk)))


def _lengths(whole: int) -> list[int]:
    doubled = (_FIRST << power for power in range(whole.bit_length()))
    return [*takewhile(lambda length: length < whole, doubled), whole]


def _seconds(base: Model, piece: Tokens, runs: Engines, threads: int) -> float:
    """What evaluating a piece takes, the loading aside."""
    settings = runs.of(base)
    if isinstance(settings, LlamaOptions):
        return evaluation_seconds(base.path, piece, replace(settings, threads=threads))
    engine = load_engine(base.path, len(piece), settings, threads=threads)
    try:
        if engine.on_gpu:
            engine.evaluate(piece)  # the first sets up more than it computes
        started = time.perf_counter()
        engine.evaluate(piece)
        return time.perf_counter() - started
    finally:
        engine.close()


def _a_token(measured: Mapping[int, float], length: int) -> float:
    """Seconds a token of chunks of a length: between pieces that were timed, or beyond them."""
    lengths, seconds = np.array(list(measured)), np.array(list(measured.values()))
    beyond = max(0, length - int(lengths[-1]))
    growth = float(np.polyfit(lengths, seconds, 1)[0]) if len(lengths) > 1 and beyond else 0.0
    # On a busy machine a longer piece may seem the faster one.
    return float(np.interp(length, lengths, seconds)) + max(0.0, growth) * beyond


def _basis(measured: tuple[int, ...], whole: int) -> str:
    if measured[-1] == whole:
        return "measured on one chunk of the base"
    if len(measured) == 1:
        what = f"measured on the first {measured[0]:,} tokens of a chunk of the base"
        return f"{what}; one of {whole:,} is slower by its attention"
    pieces = f"pieces of {measured[0]:,} to {measured[-1]:,}"
    return f"extrapolated to {whole:,} tokens from {pieces} of a chunk of the base"
