"""Making candidates from the base with llama.cpp's own quantiser, cached by digest.

The quantiser runs in a process of its own: it aborts on some damaged files, and takes no signal
while it works. The file appears in the cache under its final name only when it is whole.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from kldcloud.errors import EngineError, StoreError
from kldcloud.models.cache import cache_dir
from kldcloud.spec.quants import FTYPES
from kldcloud.store.digest import sha256_bytes

Progress = Callable[[int, int], None]


def quantized(source: Path, sha256: str, quant: str, *, progress: Progress | None = None) -> Path:
    """A GGUF of `source` at another type, from the cache or made now.

    Args:
        source: a GGUF file.
        sha256: its digest.
        quant: a llama.cpp type name, such as Q4_K_M or F16.
        progress: called with tensors done and in all.

    Raises:
        EngineError: if llama.cpp fails or dies.
        StoreError: if there is no room for the file.
    """
    # The output is a function of source, type and quantiser, so a cached file is never stale.
    key = sha256_bytes(f"{sha256} {quant} {_engine_version()}".encode())
    folder = cache_dir() / "quantized"
    target = folder / f"{key[:32]}-{quant}.gguf"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{folder}: cannot keep quantised models there: {error.strerror}",
            hint="set KLDCLOUD_CACHE to a folder with room",
        ) from error
    part = folder / f".{key[:32]}.{os.getpid()}.part"
    try:
        _run(source, part, quant, progress)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _engine_version() -> str:
    from kldcloud.models.llama_library import llama

    return f"llama-cpp-python {llama().__version__}"


def _run(source: Path, target: Path, quant: str, progress: Progress | None) -> None:
    command = [sys.executable, "-m", "kldcloud.models.quantize", str(source), str(target), quant]
    process = subprocess.Popen(  # noqa: S603 - our own module, arguments as a list
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    last = ""
    try:
        for line in process.stdout or ():
            if match := re.match(r"\[\s*(\d+)/\s*(\d+)\]", line):
                if progress:
                    progress(int(match[1]), int(match[2]))
            elif line.strip():
                last = line.strip()
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if code == 0:
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
    cause = f"it was killed by signal {-code}" if code < 0 else last or f"exit code {code}"
    raise EngineError(
        f"{source.name}: llama.cpp could not make {quant} of it: {cause}",
        hint="some types need an importance matrix or row sizes that this model lacks",
    )


def _main(source: str, target: str, quant: str) -> int:
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
    return int(binding.llama_model_quantize(source.encode(), target.encode(), params))


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
