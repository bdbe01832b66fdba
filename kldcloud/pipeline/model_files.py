"""Model files on this machine, with what a run must know of them; and those made by quantising."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kldcloud.models.digests import model_sha256
from kldcloud.models.gguf_header import GgufHeader, read_gguf_header
from kldcloud.models.quantize import quantized
from kldcloud.pipeline.progress import Progress


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A GGUF on this machine.

    Attributes:
        name: what reports and keys call it.
        file: the file name that people know it by.
        origin: the URI that any machine can fetch it from; empty if there is none.
    """

    name: str
    file: str
    path: Path
    sha256: str
    header: GgufHeader
    origin: str = ""


def quantize_model(
    source: ModelFile, quant: str, name: str, progress: Progress, imatrix: Path | None = None
) -> ModelFile:
    """A model at another type, from the cache or made now.

    Args:
        source: what is quantised.
        quant: a llama.cpp type name.
        name: what reports call the new one.
        progress: for a bar.
        imatrix: an importance matrix of `source`.

    Raises:
        EngineError: if llama.cpp fails.
        FormatError: if the importance matrix is none of this model.
        StoreError: if there is no room.
    """
    label = quant if imatrix is None else f"{quant}-imat"
    with progress.bar(f"quantising to {label}", len(source.header.tensors)) as bar:
        path = quantized(source.path, source.sha256, quant, imatrix=imatrix, progress=bar.reach)
    stem = Path(source.file).stem
    return model_file(name, f"{stem}-{label}.gguf", path, progress)


def model_file(name: str, file: str, path: Path, progress: Progress, origin: str = "") -> ModelFile:
    """Look at a GGUF's header and hash it; arguments as attributes of `ModelFile`.

    Raises:
        FormatError: it is no whole GGUF.
    """
    header = read_gguf_header(path)
    with progress.bar(f"hashing {file}", header.file_bytes) as bar:
        digest = model_sha256(path, bar.advance)
    return ModelFile(name, file, path, digest, header, origin)
