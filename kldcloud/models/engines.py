"""Loading a model into the engine that its options are for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kldcloud.models.engine import Engine
from kldcloud.models.llama_engine import LlamaEngine, LlamaOptions
from kldcloud.models.transformers_options import TransformersOptions


def load_engine(
    path: Path,
    context: int,
    options: LlamaOptions | TransformersOptions,
    *,
    threads: int = 1,
) -> Engine:
    """A model, ready for chunks of one length.

    Args:
        path: a GGUF, or a folder of safetensors.
        context: tokens a chunk.
        options: how it is run; their class says by which engine.
        threads: CPU threads of this worker, which change no number.

    Raises:
        EngineError: the engine refuses the model, or there is no memory for it.
        FormatError: the folder is no whole model.
    """
    if isinstance(options, LlamaOptions):
        return LlamaEngine(path, context, replace(options, threads=threads))
    from kldcloud.models.transformers_engine import TransformersEngine

    return TransformersEngine(path, context, options, threads=threads)
