"""Importance matrices, and the two kinds of file that hold them.

For every weight matrix: the sum of the squares of each input column over all rows that went through
it, and how many rows those were. Both layouts are those of llama.cpp's `llama-imatrix`: a GGUF with
two tensors a weight, and the older `.dat` with one record a weight.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from kldcloud.errors import FormatError, UserError
from kldcloud.models.gguf_header import GgufHeader, read_gguf_header, read_tensor_bytes

SUMS: Final = ".in_sum2"
COUNTS: Final = ".counts"
_CHUNKS_KEY: Final = "imatrix.chunk_count"
_CONTEXT_KEY: Final = "imatrix.chunk_size"

_MAX_BYTES: Final = 4 << 30  # 128 experts x 60 layers x 3 matrices x 7168 columns are 660 MB
_MAX_ENTRIES: Final = 1 << 16
_MAX_NAME_BYTES: Final = 63
_MOST_ROWS: Final = 1 << 53

_U32, _STRING, _ARRAY = 4, 8, 9
_F32 = 0
_ALIGNMENT: Final = 32


@dataclass(frozen=True, slots=True)
class Importance:
    """What went into one weight matrix, or into the stacked matrices of one tensor.

    Attributes:
        sums: float32 [matrices * columns], squared activations summed over rows.
        counts: int64 [1], the rows of each matrix; [experts] where each has its own.
    """

    sums: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]

    def weights(self) -> npt.NDArray[np.float32]:
        """float32 [matrices * columns], mean squares as `llama-quantize` hands them on.

        An expert that no token was sent to has 1 in every column: all of them matter alike.
        """
        sums = self.sums.reshape(len(self.counts), -1)
        counts = self.counts.astype(np.float32)[:, None]
        means = np.divide(sums, counts, out=np.ones_like(sums), where=counts > 0)
        return means.reshape(-1)


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """The importance of a model's weight matrices.

    Attributes:
        entries: by the name of the tensor.
        chunks: that were evaluated; 0 if the file does not say.
        context: tokens a chunk; 0 if the file does not say.
    """

    entries: Mapping[str, Importance]
    chunks: int
    context: int


def imatrix_bytes(matrix: ImportanceMatrix, dataset: str) -> bytes:
    """The GGUF that `llama-imatrix` writes of a matrix, which `llama-quantize` reads.

    Args:
        matrix: of which model, the file does not say.
        dataset: what the text is called.
    """
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for name, entry in sorted(matrix.entries.items()):
        rows = len(entry.counts)
        tensors[name + SUMS] = np.ascontiguousarray(entry.sums, "<f4").reshape(rows, -1)
        tensors[name + COUNTS] = entry.counts.astype("<f4").reshape(rows, 1)
    pairs = (
        ("general.type", struct.pack("<I", _STRING) + _text("imatrix")),
        ("imatrix.datasets", struct.pack("<IIQ", _ARRAY, _STRING, 1) + _text(dataset)),
        (_CHUNKS_KEY, struct.pack("<II", _U32, matrix.chunks)),
        (_CONTEXT_KEY, struct.pack("<II", _U32, matrix.context)),
    )
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)))
    for key, value in pairs:
        out += _text(key) + value
    offset = 0
    for name, data in tensors.items():
        # As ggml counts dimensions: the last ones are left out where they are 1.
        shape = (data.shape[1], data.shape[0]) if data.shape[0] > 1 else (data.shape[1],)
        out += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, _F32, offset)
        offset += -(-data.nbytes // _ALIGNMENT) * _ALIGNMENT
    for data in tensors.values():
        out += bytes(-len(out) % _ALIGNMENT) + data.tobytes()
    return bytes(out) + bytes(-len(out) % _ALIGNMENT)


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read an importance matrix of either kind, and believe nothing in it unchecked.

    Raises:
        UserError: there is no such file, or it cannot be opened.
        FormatError: it is of neither kind, is truncated or contradicts itself.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or 'cannot be opened'}") from error
    if size > _MAX_BYTES:
        raise FormatError(f"{path}: has {size:,} bytes, more than an importance matrix ever has")
    matrix = _read_gguf(path) if magic == b"GGUF" else _read_dat(path)
    if not matrix.entries:
        raise FormatError(f"{path}: holds no importance of any weight", hint=_MAKE_IT_AGAIN)
    return matrix


def check_fit(matrix: ImportanceMatrix, header: GgufHeader, where: str) -> None:
    """See that a matrix is one of this model.

    Tensors without an entry are no fault: an output head seldom has one.

    Args:
        matrix: to be used.
        header: of the model.
        where: the file that the matrix came from.

    Raises:
        FormatError: for the first entry that the model has no tensor for, or one of another size.
    """
    for name, entry in matrix.entries.items():
        tensor = header.tensors.get(name)
        if tensor is None:
            raise FormatError(
                f"{where}: has the importance of {name!r}, which the model lacks",
                hint="make it with the model that is quantised",
            )
        # As llama.cpp counts: an expert's or head's own columns, or those of one matrix.
        matrices = tensor.shape[2] if len(tensor.shape) > 2 else 1  # noqa: PLR2004
        expected = tensor.shape[0] * matrices
        if entry.sums.size != expected or matrices % len(entry.counts):
            raise FormatError(
                f"{where}: has {entry.sums.size:,} columns in {len(entry.counts):,} parts for "
                f"{name!r}, of which the model has {expected:,} in {matrices:,}",
                hint="make it with the model that is quantised",
            )


_MAKE_IT_AGAIN: Final = "make it again with llama-imatrix, or let kldcloud make one from a text"


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _read_gguf(path: Path) -> ImportanceMatrix:
    header = read_gguf_header(path, needs_architecture=False)
    if header.metadata.get("general.type") != "imatrix":
        raise FormatError(
            f"{path}: is a GGUF, but of no importance matrix (general.type)", hint=_MAKE_IT_AGAIN
        )
    entries = {}
    for name in header.tensors:
        stem = name.removesuffix(SUMS)
        if stem == name:
            if name.removesuffix(COUNTS) + SUMS not in header.tensors:
                raise FormatError(f"{path}: {name!r} has no sums beside it", hint=_MAKE_IT_AGAIN)
            continue
        if stem + COUNTS not in header.tensors:
            raise FormatError(f"{path}: {name!r} has no counts beside it", hint=_MAKE_IT_AGAIN)
        counts = _floats(path, header, stem + COUNTS)
        if (counts != np.rint(counts)).any() or counts.max() >= _MOST_ROWS:
            raise FormatError(f"{path}: the counts of {stem!r} are no whole numbers")
        entries[stem] = _entry(path, stem, _floats(path, header, name), counts.astype(np.int64))
    chunks, context = (header.metadata.get(key) for key in (_CHUNKS_KEY, _CONTEXT_KEY))
    return ImportanceMatrix(
        entries,
        chunks if isinstance(chunks, int) else 0,
        context if isinstance(context, int) else 0,
    )


def _floats(path: Path, header: GgufHeader, name: str) -> npt.NDArray[np.float32]:
    info = header.tensors[name]
    if info.type_name != "F32":
        raise FormatError(f"{path}: {name!r} is {info.type_name}, not F32", hint=_MAKE_IT_AGAIN)
    # A copy: the file may change under a map.
    return np.array(read_tensor_bytes(path, info).view("<f4"), np.float32)


def _entry(
    path: Path, name: str, sums: npt.NDArray[np.float32], counts: npt.NDArray[np.int64]
) -> Importance:
    if not np.isfinite(sums).all() or (sums < 0).any() or (counts < 0).any():
        raise FormatError(
            f"{path}: the importance of {name!r} has values that no sum of squares has",
            hint=_MAKE_IT_AGAIN,
        )
    if sums.size % len(counts):
        raise FormatError(
            f"{path}: {name!r} has {sums.size:,} columns in {len(counts):,} parts",
            hint=_MAKE_IT_AGAIN,
        )
    return Importance(sums, counts)


def _read_dat(path: Path) -> ImportanceMatrix:
    """Read a `.dat`: int32 entries; each int32 length, name, int32 chunks, int32 n, float32 [n].

    At the end, perhaps: int32 chunks, int32 length, name of the text. The values are mean squares
    times the chunks; a count of rows is nowhere, so the chunks stand for it.
    """
    data = path.read_bytes()
    walk = _Records(data, path)
    count = walk.int32("the number of entries")
    if not 1 <= count <= _MAX_ENTRIES:
        raise FormatError(
            f"{path}: is neither a GGUF nor an older importance matrix", hint=_MAKE_IT_AGAIN
        )
    entries: dict[str, Importance] = {}
    for index in range(count):
        what = f"entry {index}"
        name = walk.name(what)
        if name in entries:
            raise FormatError(f"{path}: has the importance of {name!r} twice")
        chunks, columns = walk.int32(what), walk.int32(what)
        if chunks < 0 or columns < 1:
            raise FormatError(f"{path}: {name!r} claims {columns} columns of {chunks} chunks")
        sums = np.frombuffer(walk.take(4 * columns, what), "<f4").astype(np.float32)
        # Without a count, llama-quantize takes the values as they are.
        entries[name] = _entry(path, name, sums, np.array([max(chunks, 1)], np.int64))
    total = walk.int32("the number of chunks") if walk.left >= 4 else 0  # noqa: PLR2004
    return ImportanceMatrix(entries, max(total, 0), 0)


class _Records:
    """A position in the bytes that cannot leave them."""

    def __init__(self, data: bytes, path: Path) -> None:
        self._data = data
        self._path = path
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int, what: str) -> bytes:
        if count > self.left:
            raise FormatError(
                f"{self._path}: ends within {what} (at byte {len(self._data):,}); no importance "
                "matrix, or not all of one",
                hint=_MAKE_IT_AGAIN,
            )
        self._at += count
        return self._data[self._at - count : self._at]

    def int32(self, what: str) -> int:
        return int(struct.unpack("<i", self.take(4, what))[0])

    def name(self, what: str) -> str:
        length = self.int32(what)
        if not 1 <= length <= _MAX_NAME_BYTES:
            raise FormatError(f"{self._path}: {what} claims a name of {length:,} bytes")
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError:
            raise FormatError(f"{self._path}: {what} has a name that is not UTF-8") from None
