"""The teacher in NVFP4, which llama.cpp's quantiser does not make: from the cache or made here."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from kldcloud.models.cache import cache_folder
from kldcloud.pipeline.model_files import ModelFile, model_file
from kldcloud.pipeline.progress import Progress
from kldcloud.store.digest import sha256_bytes

NVFP4: Final = "NVFP4"
_RECIPE: Final = "kldcloud.nvfp4/1"
"""Changes with what is written for the same teacher, so that no older file is taken for it."""


def nvfp4_model(teacher: ModelFile, progress: Progress) -> ModelFile:
    """Round the matrices of a model's layers to NVFP4.

    Raises:
        FormatError: the teacher cannot be read, its widths do not allow NVFP4, or llama.cpp would
            compute something else.
        StoreError: if there is no room for the file.
    """
    from kldcloud.qad.nvfp4_file import quantize_to_nvfp4

    key = sha256_bytes(f"{teacher.sha256} {_RECIPE}".encode())[:32]
    path = cache_folder("quantized", "quantised models") / f"{key}-{NVFP4}.gguf"
    if not path.exists():
        with progress.bar(f"rounding to {NVFP4}", 1) as bar:
            quantize_to_nvfp4(teacher.path, path)
            bar.advance(1)
    return model_file(NVFP4, f"{Path(teacher.file).stem}-{NVFP4}.gguf", path, progress)
