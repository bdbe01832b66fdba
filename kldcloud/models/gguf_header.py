"""What a GGUF file says about its model, read without its weights and without trusting it.

Every count, length and offset is checked against a limit and against the file's size before it
is used, so that a hostile or damaged file costs one error line and never time or memory.
Layout: the GGUF specification of the ggml project, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kldcloud.errors import FormatError
from kldcloud.models.ggml_types import GGML_TYPES
from kldcloud.models.gguf_walk import ArrayInfo, GgufWalk, MetadataValue
from kldcloud.models.regular_file import DOWNLOAD_AGAIN, open_regular
from kldcloud.store.digest import sha256_bytes

__all__ = [
    "ArrayInfo",
    "GgufHeader",
    "MetadataValue",
    "TensorInfo",
    "read_gguf_header",
    "read_tensor_bytes",
]

_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 16
_MAX_KEY_BYTES = (1 << 16) - 1  # the specification's limit
_MAX_TENSOR_NAME_BYTES = 63  # ggml keeps a name in 64 bytes with its terminator
_MAX_RANK = 4
_MAX_ELEMENTS = 1 << 60
_MAX_ALIGNMENT = 1 << 20
_DEFAULT_ALIGNMENT = 32
_TOKENS = "tokenizer.ggml.tokens"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies and how it is stored.

    Attributes:
        name: such as ``"output.weight"``.
        shape: in ggml's order, the contiguous dimension first: ``(d, V)`` for an output head.
        type_name: such as ``"Q4_K"``.
        offset: bytes from the start of the file.
        nbytes: bytes of its data.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    nbytes: int

    @property
    def elements(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The header of one GGUF file.

    Attributes:
        version: of the format, 2 or 3.
        metadata: the key-value pairs, in the file's order.
        tensors: by name, in the file's order.
        file_bytes: size of the whole file.
        tokens_sha256: of the vocabulary's strings in their order; empty for a file without them.
    """

    version: int
    metadata: Mapping[str, MetadataValue]
    tensors: Mapping[str, TensorInfo]
    file_bytes: int
    tokens_sha256: str = ""

    @property
    def architecture(self) -> str:
        """``general.architecture``, such as ``"llama"``."""
        return str(self.metadata["general.architecture"])

    @property
    def parameters(self) -> int:
        """Weights in all tensors."""
        return sum(tensor.elements for tensor in self.tensors.values())

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors' data, without padding."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def bits_per_weight(self) -> float:
        """Stored bits a weight over all tensors; 0.0 for a file without tensors."""
        return 8 * self.tensor_bytes / self.parameters if self.tensors else 0.0

    @property
    def vocabulary_size(self) -> int:
        """Entries of ``tokenizer.ggml.tokens``; 0 for a file without a tokenizer."""
        tokens = self.metadata.get(_TOKENS)
        return tokens.count if isinstance(tokens, ArrayInfo) else 0


def read_gguf_header(path: str | Path, *, needs_architecture: bool = True) -> GgufHeader:
    """Read and check the header of a GGUF file (version 2 or 3, little-endian).

    Args:
        path: a file that holds a whole model; its weights are neither read nor mapped in.
        needs_architecture: whether it must be a model; other things are kept in GGUFs as well.

    Returns:
        The metadata and the tensor table.

    Raises:
        UserError: there is no such file, or it cannot be opened.
        FormatError: it is no GGUF, is truncated, contradicts itself, is one part of a split
            model, or goes beyond the bounds above.
    """
    path = Path(path)
    with (
        open_regular(path) as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        walk = GgufWalk(data, path)
        version = _read_version(walk)
        tensor_count = walk.u64("the tensor count")
        key_count = walk.u64("the metadata count")
        if tensor_count > _MAX_TENSORS:
            raise walk.wrong(f"claims {tensor_count:,} tensors, more than {_MAX_TENSORS:,}")
        if key_count > _MAX_KEYS:
            raise walk.wrong(f"claims {key_count:,} metadata keys, more than {_MAX_KEYS:,}")
        metadata, tokens_sha256 = _read_metadata(walk, key_count)
        if needs_architecture and not isinstance(metadata.get("general.architecture"), str):
            raise walk.wrong("names no architecture (general.architecture)")
        _refuse_parts(walk, metadata)
        tensors = _read_tensors(walk, tensor_count, _alignment(walk, metadata))
        return GgufHeader(version, metadata, tensors, walk.size, tokens_sha256)


def read_tensor_bytes(
    path: str | Path, info: TensorInfo
) -> np.memmap[tuple[int], np.dtype[np.uint8]]:
    """Map one tensor's stored bytes, read-only.

    Args:
        path: the file whose header gave `info`.
        info: the tensor to map.

    Returns:
        uint8 ``[info.nbytes]``; pages are read as they are touched.

    Raises:
        UserError: there is no such file, or it cannot be opened.
        FormatError: the file is shorter than its header said.
    """
    path = Path(path)
    with open_regular(path) as file:
        if info.offset + info.nbytes > path.stat().st_size:
            raise FormatError(f"{path}: ends within the tensor {info.name!r}", hint=DOWNLOAD_AGAIN)
        return np.memmap(file, dtype=np.uint8, mode="r", offset=info.offset, shape=(info.nbytes,))


def _read_version(walk: GgufWalk) -> int:
    magic = walk.data[:4]
    if magic != b"GGUF":
        hint = "give the path of a GGUF file, or download it again"
        raise walk.wrong(f"is not a GGUF file (it begins with {magic!r})", hint=hint)
    walk.at = 4
    version = walk.u32("the version")
    if version & 0xFFFF == 0:
        raise walk.wrong("is big-endian", hint="convert the model for a little-endian machine")
    if version not in (2, 3):
        hint = "convert the model again with today's llama.cpp"
        raise walk.wrong(f"is GGUF version {version}; versions 2 and 3 are read", hint=hint)
    return version


def _read_metadata(walk: GgufWalk, count: int) -> tuple[dict[str, MetadataValue], str]:
    """The key-value pairs, and the digest of the vocabulary's strings."""
    metadata: dict[str, MetadataValue] = {}
    tokens_sha256 = ""
    for index in range(count):
        key = walk.name(f"metadata key {index}", _MAX_KEY_BYTES)
        if key in metadata:
            raise walk.wrong(f"names the metadata {key[:80]!r} twice")
        kind, start = walk.u32(f"the type of {key[:80]!r}"), walk.at
        metadata[key] = walk.value(kind, key)
        if key == _TOKENS:
            tokens_sha256 = sha256_bytes(walk.data[start : walk.at])
    return metadata, tokens_sha256


def _refuse_parts(walk: GgufWalk, metadata: Mapping[str, MetadataValue]) -> None:
    parts = metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        hint = "merge the parts with llama-gguf-split --merge and give the merged file"
        raise walk.wrong(f"is one of {parts:,} parts of a split model", hint=hint)


def _alignment(walk: GgufWalk, metadata: Mapping[str, MetadataValue]) -> int:
    value = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    in_bounds = isinstance(value, int) and 1 <= value <= _MAX_ALIGNMENT
    if not in_bounds or not isinstance(value, int) or value & (value - 1):
        raise walk.wrong(f"general.alignment is {value!r}, not a power of two up to 2^20")
    return value


def _read_tensors(walk: GgufWalk, count: int, alignment: int) -> dict[str, TensorInfo]:
    claims: dict[str, TensorInfo] = {}
    for index in range(count):
        info = _read_tensor(walk, index)
        if info.name in claims:
            raise walk.wrong(f"names the tensor {info.name!r} twice")
        if info.offset % alignment:
            raise walk.wrong(f"tensor {info.name!r} is not aligned to {alignment} bytes")
        claims[info.name] = info

    data_start = -(-walk.at // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, claim in claims.items():
        offset = data_start + claim.offset
        if offset + claim.nbytes > walk.size:
            raise walk.wrong(f"ends within the tensor {name!r} (at byte {walk.size:,})")
        tensors[name] = TensorInfo(name, claim.shape, claim.type_name, offset, claim.nbytes)
    _refuse_overlap(walk, tensors)
    return tensors


def _read_tensor(walk: GgufWalk, index: int) -> TensorInfo:
    """Read one entry of the tensor table; its offset still counts from the data's start."""
    name = walk.name(f"tensor name {index}", _MAX_TENSOR_NAME_BYTES)
    what = f"tensor {name!r}"
    rank = walk.u32(what)
    if not 1 <= rank <= _MAX_RANK:
        raise walk.wrong(f"{what} has {rank:,} dimensions, not 1 to {_MAX_RANK}")
    shape = tuple(walk.u64(what) for _ in range(rank))
    elements = 1
    for size in shape:
        elements *= size
    if not 0 < elements < _MAX_ELEMENTS:
        raise walk.wrong(f"{what} has the impossible shape {shape}")
    number = walk.u32(what)
    if number not in GGML_TYPES:
        hint = "convert it to a type that llama.cpp still reads, or update kldcloud"
        raise walk.wrong(f"{what} has the unknown type number {number}", hint=hint)
    kind = GGML_TYPES[number]
    if shape[0] % kind.block_elements:
        raise walk.wrong(f"{what} has rows of {shape[0]:,}, not whole blocks of {kind.name}")
    nbytes = elements // kind.block_elements * kind.block_bytes
    return TensorInfo(name, shape, kind.name, walk.u64(what), nbytes)


def _refuse_overlap(walk: GgufWalk, tensors: Mapping[str, TensorInfo]) -> None:
    end, before = 0, ""
    for info in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if info.offset < end:
            raise walk.wrong(f"tensors {before!r} and {info.name!r} overlap")
        end, before = info.offset + info.nbytes, info.name
