"""A GGUF with some tensors at another type: what keeps its size is carried over byte for byte.

The metadata section is copied as bytes, but for the number of ``general.file_type``, which says
what most tensors are. The tensor table is written anew, as tensors change size and some are added.
Layout: the GGUF specification of the ggml project.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from kldcloud.errors import FormatError, UserError
from kldcloud.models.ggml_types import GGML_TYPES
from kldcloud.models.gguf_header import GgufHeader, read_gguf_header, read_tensor_bytes
from kldcloud.models.gguf_walk import GgufWalk
from kldcloud.qad.whole_file import whole_file, written

_FILE_TYPE: Final = "general.file_type"
_U32_VALUE: Final = 4
_COUNTS_END: Final = 24
"""Magic, version, and the counts of tensors and of metadata."""
_DEFAULT_ALIGNMENT: Final = 32
_LONGEST_KEY: Final = (1 << 16) - 1
_NUMBERS: Final = {kind.name: number for number, kind in GGML_TYPES.items()}
_LAYOUTS: Final = {kind.name: kind for kind in GGML_TYPES.values()}


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor of the new file that the source does not have, or has otherwise.

    Attributes:
        name: the source's tensor that it takes the place of, or a name of its own.
        shape: in ggml's order, the contiguous dimension first.
        type_name: such as ``"NVFP4"``.
        data: makes its bytes, an array of any dtype; called once, when they are written.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    data: Callable[[], npt.NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Bytes that `data` must come to."""
        layout = _LAYOUTS[self.type_name]
        elements = int(np.prod(self.shape, dtype=np.int64))
        return elements // layout.block_elements * layout.block_bytes


def retype_gguf(
    source: Path,
    target: Path,
    tensors: Sequence[NewTensor],
    file_type: int,
    *,
    check: Callable[[Path], object] | None = None,
) -> None:
    """Write `target`: the file `source` with tensors replaced by, or followed by, new ones.

    One tensor is held at a time. `target` appears only once it is whole, and `check` has returned.

    Args:
        source: a GGUF; only read.
        target: another path.
        tensors: new ones. One of a name that the source has stands in its place, others stand
            after the one of `tensors` that is given before them.
        file_type: llama.cpp's number for a file of that type (`enum llama_ftype`).
        check: called with the path of the finished file under another name.

    Raises:
        UserError: `source` cannot be read, or is `target`.
        FormatError: `source` is no good GGUF, or changed; a tensor's data has another size than its
            shape says.
        StoreError: `target` cannot be written, such as on a full disk.
    """
    header = read_gguf_header(source)
    if target.exists() and target.samefile(source):
        raise UserError(f"{target}: is the file that it is made of", hint="write to another path")
    order = _order(header, tensors)
    start = _start(source, header, order, file_type)
    with whole_file(target, check) as part, written(target), part.open("wb") as file:
        file.write(start)
        for each in order:
            _pad(file, _alignment(header))
            _write(file, source, header, each, target)
        _pad(file, _alignment(header))
        file.flush()
        os.fsync(file.fileno())


def _order(header: GgufHeader, tensors: Sequence[NewTensor]) -> list[NewTensor | str]:
    """The new file's tensors in order; a name alone is one of the source's."""
    after: dict[str, list[NewTensor]] = {}
    place = ""
    for each in tensors:
        place = each.name if each.name in header.tensors else place
        after.setdefault(place, []).append(each)
    order: list[NewTensor | str] = list(after.pop("", []))
    for name in header.tensors:
        order += after.get(name, [name])
    return order


def _start(
    source: Path, header: GgufHeader, order: Sequence[NewTensor | str], file_type: int
) -> bytes:
    """All that stands before the first tensor's data, but for padding."""
    table = bytearray()
    offset = 0
    for each in order:
        if isinstance(each, str):
            info = header.tensors[each]
            name, shape, kind, nbytes = each, info.shape, info.type_name, info.nbytes
        else:
            name, shape, kind, nbytes = each.name, each.shape, each.type_name, each.nbytes
        raw = name.encode()
        table += struct.pack("<Q", len(raw)) + raw + struct.pack("<I", len(shape))
        table += struct.pack(f"<{len(shape)}QIQ", *shape, _NUMBERS[kind], offset)
        offset += -(-nbytes // _alignment(header)) * _alignment(header)
    metadata = _metadata(source, len(header.metadata), file_type)
    counts = struct.pack("<QQ", len(order), len(header.metadata))
    return struct.pack("<4sI", b"GGUF", header.version) + counts + metadata + bytes(table)


def _metadata(source: Path, count: int, file_type: int) -> bytes:
    """The source's metadata section with another file type, if it states one."""
    with (
        source.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        walk = GgufWalk(data, source)
        walk.at = _COUNTS_END
        at = None
        for _ in range(count):
            key = walk.name("a metadata key", _LONGEST_KEY)
            kind = walk.u32(key)
            if key == _FILE_TYPE and kind == _U32_VALUE:
                at = walk.at - _COUNTS_END
            walk.value(kind, key)
        section = bytearray(data[_COUNTS_END : walk.at])
    if at is not None:
        struct.pack_into("<I", section, at, file_type)
    return bytes(section)


def _write(
    file: BinaryIO, source: Path, header: GgufHeader, tensor: NewTensor | str, target: Path
) -> None:
    if isinstance(tensor, str):
        file.write(read_tensor_bytes(source, header.tensors[tensor]).data)
        return
    data = tensor.data()
    if data.nbytes != tensor.nbytes:
        raise FormatError(
            f"{target}: the tensor {tensor.name!r} takes {tensor.nbytes:,} bytes, and"
            f" {data.nbytes:,} came"
        )
    file.write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)


def _alignment(header: GgufHeader) -> int:
    value = header.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    return value if isinstance(value, int) else _DEFAULT_ALIGNMENT


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))
