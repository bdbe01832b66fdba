"""What the statistics of a chunk are made of, got ready before they are wanted.

Where a GPU evaluates, all that the CPU does between two chunks would leave it waiting, and reading
and inflating a base row takes the CPU longer than comparing it. So the logits of one chunk and the
base's rows of a few are made while an earlier one is compared; a stage's rows are packed in the
same way, behind the GPU. On a CPU there is nobody to wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Final

import numpy as np
import numpy.typing as npt

from kldcloud.corpus.chunks import Tokens
from kldcloud.divergence.base_rows import BaseRows
from kldcloud.models.engine import ChunkOutput, Engine
from kldcloud.staging.encodings import Encoding, LogitsEncoding
from kldcloud.staging.stage_reader import StageReader

_BUFFERS: Final = 2
"""One that is compared and one that is filled."""

_AT_ONCE: Final = 3
"""Chunks whose base rows are packed or unpacked beside each other, each by one thread."""
_AHEAD_BYTES: Final = 1 << 30
"""Of base rows that wait, unless a single chunk has more."""


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


def base_rows(
    reader: StageReader, chunks: Sequence[int], *, ahead: bool
) -> Iterator[Iterable[BaseRows]]:
    """The base's rows of chunk after chunk, in pieces; valid until the next chunk is asked for.

    Args:
        reader: of the base stage.
        chunks: which, in this order.
        ahead: make those of later chunks meanwhile, by threads of their own.

    Raises:
        FormatError: a frame is damaged, or not the stage's.
    """
    encoding = reader.encoding
    if not ahead:
        for chunk in chunks:
            yield encoding.pieces(reader.frame(chunk))
        return
    width = 1 if encoding.needs_hidden else _chunks_at_once(encoding)

    def rows(chunk: int) -> BaseRows:
        return encoding.rows(reader.own_frame(chunk))

    with ThreadPoolExecutor(width) as pool:
        rest = iter(chunks)
        coming: deque[Future[BaseRows]] = deque(pool.submit(rows, at) for at in islice(rest, width))
        while coming:
            here = coming.popleft().result()
            coming.extend(pool.submit(rows, at) for at in islice(rest, 1))
            yield (here,)


def code_frames(
    engine: Engine,
    encoding: LogitsEncoding,
    chunks: Sequence[Tokens],
    next_tokens: Sequence[Tokens],
) -> Iterator[bytes]:
    """What a stage keeps of chunk after chunk, where a GPU evaluates: packed by several threads.

    Raises:
        EngineError: a logit is not finite.
    """
    width = _chunks_at_once(encoding)
    with ThreadPoolExecutor(width) as pool:
        packing: deque[Future[bytes]] = deque()
        for logits, following in zip(evaluated(engine, chunks), next_tokens, strict=True):
            packing.append(pool.submit(encoding.begin(ChunkOutput(logits, None), following)))
            if len(packing) > width:
                yield packing.popleft().result()
        while packing:
            yield packing.popleft().result()


def _chunks_at_once(encoding: Encoding) -> int:
    return max(1, min(_AT_ONCE, _AHEAD_BYTES // encoding.bytes_at_once))
