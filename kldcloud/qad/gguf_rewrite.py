"""A GGUF with other codes in some of its tensors, and the proof that it says what was trained.

Nothing is converted or written anew: the init file is copied, and the trained tensors' bytes go
over the old ones. Metadata, tokenizer, the order of the tensors, alignment and padding stay byte
for byte, so whatever loads the init file loads the export.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kldcloud.errors import FormatError, UserError
from kldcloud.models.ggml_types import GGML_TYPES
from kldcloud.models.gguf_header import (
    GgufHeader,
    TensorInfo,
    read_gguf_header,
    read_tensor_bytes,
)
from kldcloud.qad.stored_values import F4, stored_values
from kldcloud.qad.whole_file import whole_file, written

_WEIGHTS_AT_ONCE = 1 << 22
_BLOCKS = {kind.name: kind for kind in GGML_TYPES.values()}


def rewrite_gguf(
    source: Path,
    target: Path,
    replaced: Iterable[tuple[str, npt.NDArray[Any]]],
    *,
    check: Callable[[Path], object] | None = None,
) -> None:
    """Write `target`: the file `source` with the bytes of some tensors replaced.

    `target` appears, or is replaced, only once all of it is on disk and `check` has returned;
    until then the bytes are in a hidden file beside it, which is removed on failure.

    Args:
        source: the init GGUF; only read.
        target: another path. Its folder is made if missing.
        replaced: names and arrays, each with exactly as many bytes as the tensor has in `source`;
            taken one at a time, so that a generator need not hold them all.
        check: called with the path of the finished hidden file; what it raises stops the export.

    Raises:
        UserError: `source` cannot be read, or is `target`.
        FormatError: `source` is no good GGUF, has no tensor of such a name, or one of another size.
        StoreError: `target` cannot be written, such as on a full disk.
    """
    header = read_gguf_header(source)
    with written(target):
        if target.exists() and target.samefile(source):
            raise UserError(f"{target}: is the init file itself", hint="export to another path")
    with whole_file(target, check) as part:
        with written(target):
            shutil.copyfile(source, part)
        if part.stat().st_size != header.file_bytes:
            raise FormatError(f"{source}: changed while it was copied", hint="export again")
        _overwrite(part, target, header, replaced)


def verify_export(path: Path, expected: Iterable[tuple[str, F4]]) -> int:
    """Refuse a GGUF that does not hold exactly the weights that training used.

    Args:
        path: the export.
        expected: tensor names and the float32 weights of the last forward pass, in the file's row
            order and any shape; taken one at a time.

    Returns:
        How many weights were compared, so that a caller can see that it was not none.

    Raises:
        UserError: there is no such file.
        FormatError: a tensor is missing, has another size, or a weight of it is another number. (A
            zero may have either sign.)
    """
    header = read_gguf_header(path)
    compared = 0
    for name, weights in expected:
        info = header.tensors.get(name)
        if info is None:
            raise FormatError(f"{path}: has no tensor {name!r}")
        if weights.size != info.elements:
            raise FormatError(
                f"{path}: {name!r} has {info.elements:,} weights, and {weights.size:,} were trained"
            )
        _compare(path, header, info, weights.reshape(-1))
        compared += weights.size
    return compared


def _overwrite(
    part: Path, target: Path, header: GgufHeader, replaced: Iterable[tuple[str, npt.NDArray[Any]]]
) -> None:
    done: set[str] = set()
    with part.open("r+b") as file:
        for name, data in replaced:
            info = header.tensors.get(name)
            if info is None:
                raise FormatError(f"{target}: the init file has no tensor {name!r} to replace")
            if name in done:
                raise FormatError(f"{target}: the tensor {name!r} came twice")
            if data.nbytes != info.nbytes:
                raise FormatError(
                    f"{target}: the tensor {name!r} has {info.nbytes:,} bytes in the init file, "
                    f"and {data.nbytes:,} came to replace them"
                )
            done.add(name)
            with written(target):
                file.seek(info.offset)
                file.write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
        with written(target):
            file.flush()
            os.fsync(file.fileno())


def _compare(path: Path, header: GgufHeader, info: TensorInfo, weights: F4) -> None:
    block = _BLOCKS[info.type_name]
    stored = read_tensor_bytes(path, info)
    blocks_at_once = _WEIGHTS_AT_ONCE // block.block_elements
    for first in range(0, info.elements // block.block_elements, blocks_at_once):
        last = first + blocks_at_once
        part = stored[first * block.block_bytes : last * block.block_bytes]
        values = stored_values(info.type_name, part)
        if info.type_name == "NVFP4":
            values *= _tensor_scale(path, header, info.name)
        start = first * block.block_elements
        # NaN differs from itself, so a weight that is none is refused too.
        wrong = np.flatnonzero(values != weights[start : start + len(values)])
        if len(wrong):
            at = int(wrong[0])
            raise FormatError(
                f"{path}: {info.name!r} does not hold what was trained: weight {start + at:,} is "
                f"{values[at]!s} and should be {weights[start + at]!s}",
                hint="do not publish this file; export the checkpoint again",
            )


def _tensor_scale(path: Path, header: GgufHeader, name: str) -> np.float32:
    """What llama.cpp multiplies an NVFP4 tensor's products by: ``x.scale`` beside ``x.weight``."""
    info = header.tensors.get(f"{name.removesuffix('.weight')}.scale")
    if info is None:
        return np.float32(1)
    if info.type_name != "F32" or info.elements != 1:
        raise FormatError(f"{path}: {info.name!r} is not one F32 number")
    return np.float32(stored_values("F32", read_tensor_bytes(path, info))[0])
