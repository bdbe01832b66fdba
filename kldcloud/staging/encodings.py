"""The encodings of a base stage behind one small interface: a chunk in, a frame of bytes out.

A frame is one chunk's scored rows. Its layout is fixed by the encoding and the stage's shape, so
decoding needs no sizes from the frame itself: what does not fit exactly is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kldcloud.divergence.base_rows import BaseRows, CodeRows, LogitRows, RowExtras, words_per_row
from kldcloud.divergence.kernel import encode
from kldcloud.errors import EngineError, FormatError
from kldcloud.models.engine import ChunkOutput
from kldcloud.staging.head import OutputHead
from kldcloud.staging.packed_codes import code_packer, pack, unpack
from kldcloud.staging.states import check_size, pack_states, unpack_states

PIECE_ROWS = 64
"""Rows decoded at once: a few MB, where a chunk of a large vocabulary is over a hundred."""


@dataclass(frozen=True, slots=True)
class StageShape:
    """Rows a chunk and entries a row."""

    rows: int
    vocabulary: int

    @property
    def code_bytes(self) -> int:
        """Of a chunk's rows as codes."""
        return self.rows * words_per_row(self.vocabulary) * 2


class Encoding(Protocol):
    """How one chunk's base distribution is kept."""

    name: str
    needs_hidden: bool

    def encode(self, output: ChunkOutput, tokens: npt.NDArray[np.int32]) -> bytes:
        """The frame of a chunk, from the base's output and the next tokens [rows]."""
        ...

    def pieces(self, frame: bytes | memoryview) -> Iterator[BaseRows]:
        """The rows of a frame in order, a part of them at a time, in a form that the kernel takes.

        Each piece is valid until the next is asked for: they share one buffer.

        Raises:
            FormatError: if the frame does not hold exactly the stage's rows.
        """
        ...

    def rows(self, frame: bytes | memoryview) -> BaseRows:
        """All rows of a frame at once, in memory of their own: `bytes_at_once`.

        Raises:
            FormatError: as `pieces`.
        """
        ...

    @property
    def bytes_at_once(self) -> int:
        """Bytes that all rows of a chunk take."""
        ...


class LogitsEncoding:
    """16-nat codes as in a .kld file, with exact row facts beside them, compressed.

    Frame: float64 normaliser, tail, target, entropy [rows] each, int32 top [rows], then the code
    rows as one zstd frame.
    """

    name = "logits"
    needs_hidden = False

    def __init__(self, shape: StageShape, *, threads: int = 1) -> None:
        self._shape = shape
        self._threads = threads

    def encode(self, output: ChunkOutput, tokens: npt.NDArray[np.int32]) -> bytes:
        return self._frame(self._coded(output.logits, tokens, PIECE_ROWS))

    def begin(self, output: ChunkOutput, tokens: npt.NDArray[np.int32]) -> Callable[[], bytes]:
        """As `encode`, in two steps: what needs the logits now, and compressing when it is called.

        In between it holds the chunk's codes: `bytes_at_once`.
        """
        coded = list(self._coded(output.logits, tokens, self._shape.rows))
        return lambda: self._frame(coded)

    def _coded(
        self, logits: npt.NDArray[np.float32], tokens: npt.NDArray[np.int32], each: int
    ) -> Iterator[CodeRows]:
        for at in range(0, self._shape.rows, each):
            part = slice(at, at + each)
            yield encode(logits[part], tokens[part], threads=self._threads, first_row=at)

    def _frame(self, coded: Iterable[CodeRows]) -> bytes:
        shape = self._shape
        facts = np.empty((4, shape.rows), "<f8")
        top = np.empty(shape.rows, "<i4")
        packer = code_packer(shape.code_bytes)
        packed: list[bytes] = []
        at = 0
        for rows in coded:
            extras = rows.extras
            if extras is None:
                raise EngineError("codes came without their row facts")
            part = slice(at, at + rows.rows)
            facts[:, part] = extras.normaliser, extras.tail, extras.target, extras.entropy
            top[part] = extras.top
            words = rows.words.astype("<u2", copy=False)
            # In the same parts however many rows come at once: zstd does not promise the same bytes
            # for others.
            parts = (
                words[start : start + PIECE_ROWS] for start in range(0, len(words), PIECE_ROWS)
            )
            packed.extend(packer.compress(each.data) for each in parts)
            at += rows.rows
        return b"".join([facts.tobytes(), top.tobytes(), *packed, packer.flush()])

    def pieces(self, frame: bytes | memoryview) -> Iterator[BaseRows]:
        return self._pieces(frame, PIECE_ROWS)

    def rows(self, frame: bytes | memoryview) -> BaseRows:
        (whole,) = self._pieces(frame, self._shape.rows)
        return whole

    @property
    def bytes_at_once(self) -> int:
        return self._shape.code_bytes

    def _pieces(self, frame: bytes | memoryview, each: int) -> Iterator[BaseRows]:
        rows = self._shape.rows
        facts_bytes = rows * 4 * 8
        head_bytes = facts_bytes + rows * 4
        if len(frame) < head_bytes:
            raise FormatError(f"a frame of {len(frame)} bytes is too short for {rows} rows")
        facts = np.frombuffer(frame[:facts_bytes], "<f8").reshape(4, rows)
        top = np.frombuffer(frame[facts_bytes:head_bytes], "<i4")
        if not np.isfinite(facts).all() or not ((facts[1] >= 0) & (facts[1] <= 1)).all():
            raise FormatError("a frame holds row facts that are no probabilities")
        if not ((top >= 0) & (top < self._shape.vocabulary)).all():
            raise FormatError("a frame's top token lies outside the vocabulary")
        at = 0
        for words in unpack(frame[head_bytes:], rows, self._shape.vocabulary, each):
            part = slice(at, at + len(words))
            normaliser, tail, target, entropy = facts[:, part]
            extras = RowExtras(normaliser, tail, target, entropy, top[part])
            yield CodeRows(words, self._shape.vocabulary, extras)
            at += len(words)


class KldEncoding:
    """Rows of a llama.cpp base file, compressed; all that is known is what the file says."""

    name = "kld"
    needs_hidden = False

    def __init__(self, shape: StageShape) -> None:
        self._shape = shape

    def encode(self, output: ChunkOutput, tokens: npt.NDArray[np.int32]) -> bytes:  # noqa: ARG002
        raise EngineError("a .kld stage is imported from a file, never computed")

    def encode_rows(self, words: npt.NDArray[np.uint16]) -> bytes:
        """The frame of a chunk's rows, uint16 [rows, words]."""
        return pack(words)

    def pieces(self, frame: bytes | memoryview) -> Iterator[BaseRows]:
        for words in unpack(frame, self._shape.rows, self._shape.vocabulary, PIECE_ROWS):
            yield CodeRows(words, self._shape.vocabulary)

    def rows(self, frame: bytes | memoryview) -> BaseRows:
        rows, vocabulary = self._shape.rows, self._shape.vocabulary
        (words,) = unpack(frame, rows, vocabulary, rows)
        return CodeRows(words, self._shape.vocabulary)

    @property
    def bytes_at_once(self) -> int:
        return self._shape.code_bytes


class HiddenEncoding:
    """States that enter the output head, rounded as its type rounds them; the head is kept once."""

    name = "hidden"
    needs_hidden = True

    def __init__(self, shape: StageShape, head: OutputHead, *, threads: int = 1) -> None:
        self._shape = shape
        self.head = head
        self._threads = threads
        self._buffer: npt.NDArray[np.float32] | None = None

    def encode(self, output: ChunkOutput, tokens: npt.NDArray[np.int32]) -> bytes:  # noqa: ARG002
        if output.hidden is None:
            raise EngineError("the engine gave no hidden states")
        return self.encode_states(output.hidden)

    def encode_states(self, states: npt.NDArray[np.float32]) -> bytes:
        """The frame of a chunk, from its states alone, float32 [rows, d].

        Raises:
            EngineError: if one is not finite.
        """
        if not np.isfinite(states).all():
            raise EngineError(
                "base hidden states are not finite",
                hint="the model file is damaged, or its backend overflows",
            )
        return pack_states(states, self.head.type_name)

    def pieces(self, frame: bytes | memoryview) -> Iterator[BaseRows]:
        """All rows as one piece: each product widens the whole head, so fewer are cheaper."""
        if self._buffer is None:
            self._buffer = self._room()
        yield self._rebuilt(frame, self._buffer)

    def rows(self, frame: bytes | memoryview) -> BaseRows:
        return self._rebuilt(frame, self._room())

    @property
    def bytes_at_once(self) -> int:
        return self._shape.rows * self._shape.vocabulary * 4

    def _room(self) -> npt.NDArray[np.float32]:
        return np.empty((self._shape.rows, self._shape.vocabulary), np.float32)

    def _rebuilt(self, frame: bytes | memoryview, out: npt.NDArray[np.float32]) -> BaseRows:
        self.head.logits(self.states(frame), out=out, threads=self._threads)
        return LogitRows(out)

    def states(self, frame: bytes | memoryview) -> npt.NDArray[np.float32]:
        """The states of a chunk, float32 [rows, d].

        Raises:
            FormatError: if the frame does not hold exactly the stage's rows.
        """
        return unpack_states(frame, self.head.type_name, self._shape.rows, self.head.width)

    def packed(self, frame: bytes | memoryview) -> npt.NDArray[np.uint8]:
        """The bytes of a chunk's states, which are looked at no further; a view.

        Raises:
            FormatError: if there are not as many as the stage's rows take.
        """
        check_size(frame, self.head.type_name, self._shape.rows, self.head.width)
        return np.frombuffer(frame, np.uint8)
