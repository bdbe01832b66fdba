"""The encodings of a base stage behind one small interface: a chunk in, a frame of bytes out.

A frame is one chunk's scored rows. Its layout is fixed by the encoding and the stage's shape, so
decoding needs no sizes from the frame itself: what does not fit exactly is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kldcloud.divergence.base_rows import BaseRows, CodeRows, LogitRows, RowExtras, words_per_row
from kldcloud.divergence.kernel import encode
from kldcloud.errors import EngineError, FormatError
from kldcloud.models.engine import ChunkOutput
from kldcloud.staging.head import OutputHead
from kldcloud.staging.states import check_size, pack_states, unpack_states

ZSTD_LEVEL = 1
"""Measured on rows of two models: higher levels cost several times more and gain a few percent."""

PIECE_ROWS = 64
"""Rows decoded at once: a few MB, where a chunk of a large vocabulary is over a hundred."""

# A row's 65,536 codes span 16 nats at most, and its minimum is a log-probability; both with room
# for float32 rounding.
MAX_SCALE = 16.001 / 65535
MAX_LOG_PROBABILITY = 1e-3


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
        shape = self._shape
        facts = np.empty((4, shape.rows), "<f8")
        top = np.empty(shape.rows, "<i4")
        packer = _packer(shape.rows * words_per_row(shape.vocabulary) * 2)
        packed = []
        for at in range(0, shape.rows, PIECE_ROWS):
            part = slice(at, at + PIECE_ROWS)
            rows = encode(output.logits[part], tokens[part], threads=self._threads, first_row=at)
            extras = rows.extras
            if extras is None:
                raise EngineError("codes came without their row facts")
            facts[:, part] = extras.normaliser, extras.tail, extras.target, extras.entropy
            top[part] = extras.top
            packed.append(packer.compress(rows.words.astype("<u2", copy=False).data))
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
        for words in unpack(frame[head_bytes:], self._shape, each):
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
        for words in unpack(frame, self._shape, PIECE_ROWS):
            yield CodeRows(words, self._shape.vocabulary)

    def rows(self, frame: bytes | memoryview) -> BaseRows:
        (words,) = unpack(frame, self._shape, self._shape.rows)
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


def pack(words: npt.NDArray[np.uint16]) -> bytes:
    """Code rows as one zstd frame; little-endian."""
    packer = _packer(words.nbytes)
    packed: bytes = packer.compress(words.astype("<u2", copy=False).data) + packer.flush()
    return packed


def _packer(size: int) -> Any:  # noqa: ANN401 - untyped package
    """A compressor for `size` bytes that come in parts; the frame tells its size beforehand."""
    import zstandard

    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj(size=size)


def unpack(
    frame: bytes | memoryview, shape: StageShape, piece: int
) -> Iterator[npt.NDArray[np.uint16]]:
    """Code rows, `piece` at a time, in one reused buffer.

    A frame that claims another size than the stage's is never inflated.

    Raises:
        FormatError: if the frame is damaged, or holds anything but the stage's rows.
    """
    import zstandard

    row_words = words_per_row(shape.vocabulary)
    expected = shape.code_bytes
    buffer = np.empty((min(piece, shape.rows), row_words), "<u2")
    try:
        claimed = zstandard.get_frame_parameters(bytes(frame[:18])).content_size
        if claimed != expected:
            raise FormatError(f"a frame claims {claimed} bytes of rows, the stage has {expected}")
        with zstandard.ZstdDecompressor().stream_reader(frame) as reader:
            for at in range(0, shape.rows, piece):
                words = buffer[: min(piece, shape.rows - at)]
                _fill(reader, words)
                _check_headers(words)
                yield words
            if reader.read(1):
                raise FormatError("a frame holds more rows than the stage has")
    except zstandard.ZstdError as error:
        raise FormatError(f"a frame does not decompress: {error}") from error


def _fill(reader: Any, words: npt.NDArray[np.uint16]) -> None:  # noqa: ANN401 - untyped package
    target = memoryview(words.data).cast("B")
    filled = 0
    while filled < len(target):
        count = reader.readinto(target[filled:])
        if not count:
            raise FormatError("a frame ends before its last row")
        filled += count


def _check_headers(words: npt.NDArray[np.uint16]) -> None:
    header = np.ascontiguousarray(words[:, :4]).view("<f4")
    scale_ok = (header[:, 0] >= 0) & (header[:, 0] <= MAX_SCALE)
    if not (scale_ok & np.isfinite(header[:, 1]) & (header[:, 1] <= MAX_LOG_PROBABILITY)).all():
        raise FormatError("a row's scale or minimum log-probability is not possible")
