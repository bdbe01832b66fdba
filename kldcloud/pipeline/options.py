"""A job's engine options as the engine takes them."""

from __future__ import annotations

from collections.abc import Mapping

from kldcloud.models.llama_engine import LlamaOptions
from kldcloud.spec.engine import EngineOptions


def llama_options(engine: EngineOptions, threads: int) -> LlamaOptions:
    """How llama.cpp runs a model on `threads` threads."""
    overrides: Mapping[str, str] = dict(engine.tensor_overrides)
    return LlamaOptions(
        n_gpu_layers=engine.n_gpu_layers,
        tensor_overrides=overrides,
        threads=threads,
        flash_attention=engine.flash_attention,
        kv_type_k=engine.kv_type_k,
        kv_type_v=engine.kv_type_v,
        repack=engine.repack,
    )
