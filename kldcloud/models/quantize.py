"""Making candidates from the base with llama.cpp's own quantiser, cached by digest.

The file appears in the cache under its final name only when it is whole.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kldcloud.errors import EngineError, StoreError, UserError
from kldcloud.models.cache import cache_folder
from kldcloud.models.child import Progress, run_child
from kldcloud.models.digests import model_sha256
from kldcloud.models.gguf_header import read_gguf_header
from kldcloud.models.imatrix_file import ImportanceMatrix, check_fit, read_imatrix
from kldcloud.spec.quants import FTYPES
from kldcloud.store.digest import sha256_bytes

_KV_INT, _KV_TEXT = 0, 3  # enum llama_model_kv_override_type
_LONGEST_KV_TEXT = 127


def quantized(
    source: Path,
    sha256: str,
    quant: str,
    *,
    imatrix: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """A GGUF of `source` at another type, from the cache or made now.

    Args:
        source: a GGUF file.
        sha256: its digest.
        quant: a llama.cpp type name, such as Q4_K_M or F16.
        imatrix: an importance matrix of `source`, a GGUF or a `.dat`. Its digest is noted in the
            metadata of what is made, where `llama-quantize` notes its path.
        progress: called with tensors done and in all.

    Raises:
        EngineError: if llama.cpp fails or dies.
        FormatError: if the importance matrix is none, or not one of this model.
        StoreError: if there is no room for the file.
    """
    # The output is a function of source, type, importance and quantiser, so a cached file is never
    # stale.
    identity = f"{sha256} {quant} {_engine_version()}"
    arguments = [str(source), quant]
    if imatrix is not None:
        digest = model_sha256(imatrix)
        identity += f" imatrix {digest}"
        arguments += [str(imatrix), digest]
        check_fit(read_imatrix(imatrix), read_gguf_header(source), str(imatrix))
    key = sha256_bytes(identity.encode())[:32]
    folder = cache_folder("quantized", "quantised models")
    target = folder / f"{key}-{quant}{'-imat' if imatrix is not None else ''}.gguf"
    if target.exists():
        return target
    part = folder / f".{key}.{os.getpid()}.part"
    try:
        _run(source, part, quant, arguments, progress)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _engine_version() -> str:
    from kldcloud.models.llama_library import llama

    return f"llama-cpp-python {llama().__version__}"


def _run(
    source: Path, target: Path, quant: str, arguments: list[str], progress: Progress | None
) -> None:
    ended = run_child(__name__, [str(target), *arguments], progress)
    if ended.code == 0:
        return
    free = 0
    with contextlib.suppress(OSError):
        stat = os.statvfs(target.parent)
        free = stat.f_bavail * stat.f_frsize
    if free < source.stat().st_size // 8:
        raise StoreError(
            f"{target.parent}: no room to quantise {source.name} to {quant}",
            hint="free some space, or set KLDCLOUD_CACHE to a folder with room",
        )
    raise EngineError(
        f"{source.name}: llama.cpp could not make {quant} of it: {ended.reason}",
        hint="some types need an importance matrix or row sizes that this model lacks",
    )


def _main(target: str, source: str, quant: str, imatrix: str = "", sha256: str = "") -> int:
    import ctypes

    from kldcloud.models.llama_library import llama

    binding = llama()

    @binding.llama_log_callback  # type: ignore[untyped-decorator]
    def log(_level: int, text: bytes, _user: object) -> None:
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()

    binding.llama_log_set(log, ctypes.c_void_p(0))
    params = binding.llama_model_quantize_default_params()
    params.ftype = FTYPES[quant]
    params.nthread = os.cpu_count() or 1
    params.allow_requantize = True
    if imatrix:
        try:
            matrix = read_imatrix(Path(imatrix))
        except UserError as error:
            sys.stdout.write(f"{error}\n")
            return 1
        weights = {name: entry.weights() for name, entry in matrix.entries.items()}
        params.imatrix = _importance(weights)
        params.kv_overrides = _notes(matrix, sha256)
    return int(binding.llama_model_quantize(source.encode(), target.encode(), params))


def _importance(weights: Mapping[str, npt.NDArray[np.float32]]) -> Any:  # noqa: ANN401
    """The weights as the quantiser takes them; an empty entry is the end.

    The array of ctypes points into `weights`, which must outlive it.
    """
    import ctypes

    from kldcloud.models.llama_library import llama

    kind = llama().llama_model_imatrix_data
    array = (kind * (len(weights) + 1))()
    for slot, (name, values) in zip(array, weights.items(), strict=False):
        slot.name, slot.size = name.encode(), values.size
        slot.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return array


def _notes(matrix: ImportanceMatrix, sha256: str) -> Any:  # noqa: ANN401 - an array of ctypes
    """What llama-quantize writes into the metadata of a file made with a matrix.

    A digest stands for the file's path: what is made must not depend on where things lie.
    """
    from kldcloud.models.llama_library import llama

    notes: dict[str, str | int] = {
        "quantize.imatrix.file": f"sha256:{sha256}",
        "quantize.imatrix.entries_count": len(matrix.entries),
    }
    if matrix.chunks:
        notes["quantize.imatrix.chunks_count"] = matrix.chunks
    array = (llama().llama_model_kv_override * (len(notes) + 1))()
    for slot, (key, value) in zip(array, notes.items(), strict=False):
        slot.key = key.encode()
        if isinstance(value, str):
            slot.tag, slot.value.val_str = _KV_TEXT, value.encode()[:_LONGEST_KV_TEXT]
        else:
            slot.tag, slot.value.val_i64 = _KV_INT, value
    return array


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
