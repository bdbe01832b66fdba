"""How llama.cpp's base file (``--kl-divergence-base``) is laid out, and the bounds we hold it to.

Little-endian and packed: eight letters ``_logits_``, int32 n_ctx, int32 n_vocab, int32 n_chunk,
int32 tokens ``[n_chunk, n_ctx]``, then the scored rows of every chunk. A row is a float32 scale, a
float32 minimum and one uint16 code a vocabulary entry, and log p = scale * code + minimum in nats.
Source: ``tools/perplexity/perplexity.cpp`` of llama.cpp.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kldcloud.errors import FormatError

Uint16Rows = npt.NDArray[np.uint16]
Float32Column = npt.NDArray[np.float32]

KLD_MAGIC = b"_logits_"
KLD_FIELDS = struct.Struct("<8siii")
MAKE_AGAIN = "make the file again with llama-perplexity --kl-divergence-base"

_MIN_CONTEXT = 3  # the shortest window whose second half predicts a token
_MAX_CONTEXT = 1 << 24
_MAX_VOCABULARY = 1 << 24
_MAX_INT32 = (1 << 31) - 1
_MAX_CHUNK_BYTES = 1 << 36  # a chunk is held in memory; 131,072 tokens of V = 262,144 are 2^35
_ROW_PREFIX = 4  # uint16 words of scale and minimum


@dataclass(frozen=True, slots=True)
class KldHeader:
    """What the 20 bytes at the front of a .kld file determine.

    Attributes:
        n_ctx: tokens in a chunk.
        n_vocab: entries of the vocabulary, V.
        n_chunks: chunks in the file.
    """

    n_ctx: int
    n_vocab: int
    n_chunks: int

    @property
    def first(self) -> int:
        """The first scored position of a chunk."""
        return self.n_ctx // 2

    @property
    def rows_per_chunk(self) -> int:
        """Scored positions of a chunk: the last position predicts nothing that is known."""
        return self.n_ctx - 1 - self.n_ctx // 2

    @property
    def row_words(self) -> int:
        """uint16 words of a row: scale, minimum and codes, padded to whole float32 words."""
        return 2 * ((self.n_vocab + 1) // 2) + _ROW_PREFIX

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk's rows."""
        return 2 * self.row_words * self.rows_per_chunk

    @property
    def tokens_offset(self) -> int:
        """Bytes before the tokens."""
        return KLD_FIELDS.size

    @property
    def rows_offset(self) -> int:
        """Bytes before the first row."""
        return self.tokens_offset + 4 * self.n_chunks * self.n_ctx

    @property
    def expected_bytes(self) -> int:
        """Bytes of the whole file."""
        return self.rows_offset + self.n_chunks * self.chunk_bytes


def row_scale(rows: Uint16Rows) -> Float32Column:
    """Nats a code step of each row: a float32 ``[n]`` view of uint16 ``[n, row_words]``."""
    return rows[:, 0:2].view("<f4")[:, 0]


def row_minimum(rows: Uint16Rows) -> Float32Column:
    """Log-probability (nats) of code 0 of each row: a float32 ``[n]`` view."""
    return rows[:, 2:4].view("<f4")[:, 0]


def row_codes(rows: Uint16Rows, n_vocab: int) -> Uint16Rows:
    """The codes of uint16 ``[n, row_words]``: a ``[n, n_vocab]`` view."""
    return rows[:, _ROW_PREFIX : _ROW_PREFIX + n_vocab]


def check_fields(header: KldHeader, path: Path) -> None:
    """Refuse a header of which a field, or what follows from it, is out of bounds.

    Raises:
        FormatError: naming the field.
    """
    for name, value, least, most in (
        ("n_ctx", header.n_ctx, _MIN_CONTEXT, _MAX_CONTEXT),
        ("n_vocab", header.n_vocab, 1, _MAX_VOCABULARY),
        ("n_chunk", header.n_chunks, 1, _MAX_INT32),
        ("n_chunk * n_ctx", header.n_chunks * header.n_ctx, 1, _MAX_INT32),
        ("bytes a chunk", header.chunk_bytes, 1, _MAX_CHUNK_BYTES),
    ):
        if not least <= value <= most:
            message = f"{path}: the header's {name} is {value}, not from {least} to {most}"
            raise FormatError(message, hint=MAKE_AGAIN)


def check_size(header: KldHeader, size: int, path: Path) -> None:
    """Refuse a file that is not exactly as long as its header implies.

    Raises:
        FormatError: saying whether it is truncated or too long.
    """
    expected = header.expected_bytes
    if size == expected:
        return
    problem = "is truncated" if size < expected else "is too long"
    raise FormatError(
        f"{path}: {problem}: {size:,} bytes, where its header ({header.n_chunks:,} chunks of "
        f"{header.n_ctx:,} tokens, vocabulary {header.n_vocab:,}) needs {expected:,}",
        hint=MAKE_AGAIN,
    )
