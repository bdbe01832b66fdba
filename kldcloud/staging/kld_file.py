"""llama.cpp's base file (``--kl-divergence-base``), read without trusting it and written for it.

The file has no checksum and names no model, and the tool that reads it believes its signed header.
Here every field is bounded and the file's size must be exactly what the header implies.
"""

from __future__ import annotations

import os
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from kldcloud.errors import FormatError, UserError
from kldcloud.models.regular_file import refuse_replacing
from kldcloud.staging.kld_layout import (
    KLD_FIELDS,
    KLD_MAGIC,
    MAKE_AGAIN,
    KldHeader,
    Uint16Rows,
    check_fields,
    check_size,
    row_codes,
    row_minimum,
    row_scale,
)

__all__ = [
    "KldHeader",
    "KldWriter",
    "read_kld_chunk",
    "read_kld_header",
    "read_kld_tokens",
    "row_codes",
    "row_minimum",
    "row_scale",
]

Int32Tokens = npt.NDArray[np.int32]


def read_kld_header(path: str | Path) -> KldHeader:
    """Read and check a .kld file's header against its bounds and the file's size.

    Raises:
        UserError: there is no such file, or it cannot be opened.
        FormatError: it is no .kld file, a field is out of bounds, or the size does not fit.
    """
    path = Path(path)
    with _open_regular(path) as file:
        raw = file.read(KLD_FIELDS.size)
        size = os.fstat(file.fileno()).st_size
    if not KLD_MAGIC.startswith(raw[:8]):
        raise FormatError(
            f"{path}: is not a .kld file (it begins with {raw[:8]!r})",
            hint="give the file that llama-perplexity --kl-divergence-base wrote",
        )
    if len(raw) < KLD_FIELDS.size:
        raise FormatError(f"{path}: ends within the header", hint=MAKE_AGAIN)
    _, n_ctx, n_vocab, n_chunks = KLD_FIELDS.unpack(raw)
    header = KldHeader(n_ctx, n_vocab, n_chunks)
    check_fields(header, path)
    check_size(header, size, path)
    return header


def read_kld_tokens(path: str | Path, header: KldHeader) -> Int32Tokens:
    """Read the tokens of all chunks.

    Returns:
        int32 ``[n_chunks, n_ctx]``. Where the model adds BOS these are still the text's own
        tokens: whoever evaluates a chunk replaces its first token.

    Raises:
        UserError: the file cannot be opened.
        FormatError: the file is shorter than `header` says, or a token is not in the vocabulary.
    """
    path = Path(path)
    tokens = np.empty((header.n_chunks, header.n_ctx), dtype="<i4")
    with _open_regular(path) as file:
        _read_exactly(file, tokens, header.tokens_offset, path, "the tokens")
    outside = (tokens < 0) | (tokens >= header.n_vocab)
    if outside.any():
        chunk, position = (int(index) for index in np.argwhere(outside)[0])
        raise FormatError(
            f"{path}: token {tokens[chunk, position]} at position {position} of chunk {chunk} "
            f"is not in the vocabulary of {header.n_vocab:,}",
            hint=MAKE_AGAIN,
        )
    return tokens


def read_kld_chunk(
    path: str | Path, header: KldHeader, chunk: int, out: Uint16Rows | None = None
) -> Uint16Rows:
    """Read the scored rows of one chunk.

    Args:
        path: the file whose header is `header`.
        header: as read by `read_kld_header`.
        chunk: from 0.
        out: C-contiguous uint16 ``[rows_per_chunk, row_words]`` to fill, or None to allocate.

    Returns:
        uint16 ``[rows_per_chunk, row_words]``: `out`, if it was given.

    Raises:
        UserError: the file cannot be opened.
        FormatError: the file is shorter than `header` says, or a row's scale or minimum is not
            finite, as after a base model that overflowed.
    """
    path = Path(path)
    if not 0 <= chunk < header.n_chunks:
        raise IndexError(f"chunk {chunk} of {header.n_chunks}")
    shape = (header.rows_per_chunk, header.row_words)
    rows = np.empty(shape, dtype="<u2") if out is None else out
    if rows.shape != shape or rows.dtype != np.uint16 or not rows.flags.c_contiguous:
        raise TypeError(f"out must be C-contiguous uint16 {shape}")
    offset = header.rows_offset + chunk * header.chunk_bytes
    with _open_regular(path) as file:
        _read_exactly(file, rows, offset, path, f"chunk {chunk}")
    scale, minimum = row_scale(rows), row_minimum(rows)
    broken = ~(np.isfinite(scale) & np.isfinite(minimum) & (scale >= 0))
    if broken.any():
        row = int(np.argmax(broken))
        raise FormatError(
            f"{path}: row {row} of chunk {chunk} has the scale {scale[row]} and the minimum "
            f"{minimum[row]}, which no log-probabilities have",
            hint=MAKE_AGAIN,
        )
    return rows


class KldWriter:
    """Writes a .kld file that llama-perplexity reads, chunk after chunk.

    The rows gather in ``<path>.part``; leaving the ``with`` block after the last chunk makes it
    durable and gives it its name. An exception inside the block removes the part.

    Args:
        path: of the finished file.
        header: shape of the file.
        tokens: int32 ``[n_chunks, n_ctx]``, each in the vocabulary.
        overwrite: whether a file that is there already may be replaced.

    Raises:
        UserError: the file is there already, or cannot be written.
        FormatError: `header` or `tokens` are out of bounds.
    """

    def __init__(
        self, path: str | Path, header: KldHeader, tokens: Int32Tokens, *, overwrite: bool = False
    ) -> None:
        self.path = Path(path)
        self.header = header
        self.chunks_written = 0
        self._part = self.path.with_name(self.path.name + ".part")
        self._overwrite = overwrite
        check_fields(header, self.path)
        if tokens.shape != (header.n_chunks, header.n_ctx):
            raise TypeError(f"tokens must be int32 {(header.n_chunks, header.n_ctx)}")
        if ((tokens < 0) | (tokens >= header.n_vocab)).any():
            raise FormatError(
                f"{self.path}: a token is not in the vocabulary of {header.n_vocab:,}",
                hint="tokenise the text with the base model's own vocabulary",
            )
        self._refuse_overwrite()
        try:
            self._file = self._part.open("wb")
        except OSError as error:
            raise _cannot_write(self._part, error) from error
        fields = (KLD_MAGIC, header.n_ctx, header.n_vocab, header.n_chunks)
        try:
            self._file.write(KLD_FIELDS.pack(*fields))
            self._file.write(np.ascontiguousarray(tokens, dtype="<i4").data)
        except OSError as error:
            self._abandon()
            raise _cannot_write(self._part, error) from error

    def write_chunk(self, rows: Uint16Rows) -> None:
        """Append the next chunk's rows: uint16 ``[rows_per_chunk, row_words]``.

        The unused code at the end of a row of an odd vocabulary is written as 0.
        """
        header = self.header
        if rows.shape != (header.rows_per_chunk, header.row_words) or rows.dtype != np.uint16:
            raise TypeError(f"rows must be uint16 {(header.rows_per_chunk, header.row_words)}")
        if self.chunks_written == header.n_chunks:
            raise IndexError(f"all {header.n_chunks} chunks are written")
        if header.n_vocab % 2:
            rows = rows.copy()
            rows[:, -1] = 0
        try:
            self._file.write(np.ascontiguousarray(rows, dtype="<u2").data)
        except OSError as error:
            raise _cannot_write(self._part, error) from error
        self.chunks_written += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._abandon()
            return
        if self.chunks_written != self.header.n_chunks:
            self._abandon()
            raise FormatError(
                f"{self.path}: only {self.chunks_written} of {self.header.n_chunks} chunks were "
                "written, so the file was not kept",
                hint="export every chunk of the base stage",
            )
        try:
            self._commit()
        except OSError as problem:
            self._abandon()
            raise _cannot_write(self.path, problem) from problem

    def _commit(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self._overwrite:
            self._part.replace(self.path)
        else:
            self._name_if_free()
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _name_if_free(self) -> None:
        # link(2) fails where rename(2) would replace what another process has put there meanwhile.
        try:
            os.link(self._part, self.path)
        except FileExistsError:
            self._abandon()
            self._refuse_overwrite()
            raise
        except OSError:  # a file system without hard links
            self._refuse_overwrite()
            self._part.rename(self.path)
        else:
            self._part.unlink()

    def _abandon(self) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)

    def _refuse_overwrite(self) -> None:
        refuse_target(self.path, overwrite=self._overwrite)


def refuse_target(path: Path, *, overwrite: bool) -> None:
    """See that a base file may be written there.

    Raises:
        UserError: something other than a file is there, or a file that may not be replaced.
    """
    refuse_replacing(path)
    if path.exists() and not overwrite:
        raise UserError(f"{path} is there already", hint="choose another name, or add --force")


def _open_regular(path: Path) -> BufferedReader:
    try:
        # A pipe would block in open.
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is not a file", hint="give the path of one .kld file")
        return path.open("rb")
    except OSError as error:
        reason = error.strerror or "cannot be opened"
        raise UserError(f"{path}: {reason}", hint="check the path of the .kld file") from error


def _read_exactly(
    file: BufferedReader, into: npt.NDArray[np.generic], offset: int, path: Path, what: str
) -> None:
    """Fill a C-contiguous array from `offset` on, or say that the file is too short."""
    file.seek(offset)
    if file.readinto(into.data.cast("B")) != into.nbytes:
        raise FormatError(f"{path}: ends within {what}", hint=MAKE_AGAIN)


def _cannot_write(path: Path, error: OSError) -> UserError:
    reason = error.strerror or "cannot be written"
    return UserError(f"{path}: {reason}", hint="check the folder and its free space")
