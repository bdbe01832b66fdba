"""A tiny teacher, its quantised init and a text of random tokens: training that takes a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kldcloud.models.quantize import quantized
from kldcloud.pipeline.tasks import ModelRef
from kldcloud.qad.nvfp4_file import quantize_to_nvfp4
from kldcloud.qad.training_order import TrainingOrder
from kldcloud.spec.qad_job import TrainSpec
from kldcloud.store.digest import sha256_bytes
from tests.qad.tiny_architectures import VOCABULARY, TinyShape, tiny_model

CONTEXT = 32


def tiny_teacher(folder: Path, architecture: str = "llama", **shape: Any) -> Path:
    """Write a teacher."""
    layers = {"layers": 2, **shape}
    return tiny_model(folder / f"{architecture}.gguf", TinyShape(architecture, **layers))


def tiny_init(teacher: Path, quant: str = "Q4_0") -> Path:
    """Quantise it, by llama.cpp."""
    return quantized(teacher, sha256_bytes(teacher.read_bytes()), quant)


def tiny_nvfp4(teacher: Path) -> Path:
    """Round its layers to NVFP4."""
    target = teacher.with_name(f"{teacher.stem}-nvfp4.gguf")
    quantize_to_nvfp4(teacher, target)
    return target


def order(
    teacher: Path, init: Path, *, train: dict[str, Any] | None = None, **changes: Any
) -> TrainingOrder:
    """A training run of ten steps, two chunks each."""
    rng = np.random.default_rng(5)
    options = {"global_batch": 2, "lr": 1e-3, "warmup": 0.0, "patience": "never"} | (train or {})
    whole = TrainingOrder(
        run="tiny-0",
        prefix="qad/tiny-0",
        teacher=_reference(teacher),
        init=_reference(init),
        tokens=rng.integers(0, VOCABULARY, (20, CONTEXT)).astype(np.int32),
        heldout=rng.integers(0, VOCABULARY, (3, CONTEXT)).astype(np.int32),
        train=TrainSpec.model_validate(options),
        eval_every=5,
        checkpoint_every=5,
        keep=2,
        threads=1,
    )
    return replace(whole, **changes)


def _reference(path: Path) -> ModelRef:
    return ModelRef(path, sha256_bytes(path.read_bytes()), path.stat().st_size)
