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
from kldcloud.qad.training_tokens import Tokens, keep_tokens, reference, write_tokens
from kldcloud.spec.qad_job import TrainSpec
from kldcloud.store.base import Store
from kldcloud.store.digest import sha256_bytes
from tests.qad.tiny_architectures import VOCABULARY, TinyShape, tiny_model

CONTEXT = 32
CHUNKS = 20


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


def training_tokens() -> Tokens:
    """int32 [20, 32], what is trained on."""
    return _random_tokens()[0]


def _random_tokens() -> tuple[Tokens, Tokens]:
    rng = np.random.default_rng(5)
    training, looks = (rng.integers(0, VOCABULARY, (n, CONTEXT)) for n in (CHUNKS, 3))
    return training.astype(np.int32), looks.astype(np.int32)


def order(
    teacher: Path,
    init: Path,
    store: Store,
    *,
    train: dict[str, Any] | None = None,
    tokens: Tokens | None = None,
    **changes: Any,
) -> TrainingOrder:
    """A training run of ten steps, two chunks each, whose chunks are in a store."""
    training, looks = _random_tokens()
    chunks = training if tokens is None else tokens
    file = write_tokens([chunks.ravel()], chunks.shape[1], "all", bos=None)
    kept = reference("qad/tiny-0", file)
    keep_tokens(store, kept, file.path)
    options = {"global_batch": 2, "lr": 1e-3, "warmup": 0.0, "patience": "never"} | (train or {})
    whole = TrainingOrder(
        run="tiny-0",
        prefix="qad/tiny-0",
        teacher=_reference(teacher),
        init=_reference(init),
        tokens=kept,
        heldout=looks,
        train=TrainSpec.model_validate(options),
        eval_every=5,
        checkpoint_every=5,
        keep=2,
        threads=1,
    )
    return replace(whole, **changes)


def _reference(path: Path) -> ModelRef:
    return ModelRef(path, sha256_bytes(path.read_bytes()), path.stat().st_size)
