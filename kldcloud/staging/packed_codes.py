"""Code rows as a stage keeps them: one zstd frame a chunk, which nobody inflates unchecked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kldcloud.divergence.base_rows import words_per_row
from kldcloud.errors import FormatError

ZSTD_LEVEL: Final = 1
"""Measured on rows of two models: higher levels cost several times more and gain a few percent."""

# A row's 65,536 codes span 16 nats at most, and its minimum is a log-probability; both with room
# for float32 rounding.
MAX_SCALE: Final = 16.001 / 65535
MAX_LOG_PROBABILITY: Final = 1e-3


def pack(words: npt.NDArray[np.uint16]) -> bytes:
    """Code rows as one zstd frame; little-endian."""
    each = code_packer(words.nbytes)
    packed: bytes = each.compress(words.astype("<u2", copy=False).data) + each.flush()
    return packed


def code_packer(size: int) -> Any:  # noqa: ANN401 - untyped package
    """A compressor for `size` bytes that come in parts; the frame tells its size beforehand."""
    import zstandard

    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj(size=size)


def unpack(
    frame: bytes | memoryview, rows: int, vocabulary: int, piece: int
) -> Iterator[npt.NDArray[np.uint16]]:
    """Code rows in one reused buffer; a frame that claims another size is never inflated.

    Args:
        frame: of a chunk.
        rows: that it has by its stage.
        vocabulary: V.
        piece: rows at a time.

    Raises:
        FormatError: if the frame is damaged, or holds anything but the stage's rows.
    """
    import zstandard

    row_words = words_per_row(vocabulary)
    expected = rows * row_words * 2
    buffer = np.empty((min(piece, rows), row_words), "<u2")
    try:
        claimed = zstandard.get_frame_parameters(bytes(frame[:18])).content_size
        if claimed != expected:
            raise FormatError(f"a frame claims {claimed} bytes of rows, the stage has {expected}")
        with zstandard.ZstdDecompressor().stream_reader(frame) as reader:
            for at in range(0, rows, piece):
                words = buffer[: min(piece, rows - at)]
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
