"""What the driver sends to workers, and what comes back: small, typed, and no numbers.

A worker commits its result to the store before it replies; the reply only says that it is worth
looking there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kldcloud.corpus.chunks import Shard
from kldcloud.errors import KldcloudError
from kldcloud.models.llama_engine import LlamaOptions
from kldcloud.models.transformers_options import TransformersOptions
from kldcloud.staging.stage import StageIdentity


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model file, or a folder of safetensors, wherever the worker is.

    Attributes:
        path: where the driver has it.
        sha256: of its bytes; of all that decides its numbers, for a folder.
        size: in bytes.
        origin: a URI that any machine can fetch it from; empty for the store's `models/<sha256>`.
        folder: whether it is a folder.
    """

    path: Path
    sha256: str
    size: int
    origin: str = ""
    folder: bool = False


@dataclass(frozen=True, slots=True)
class EngineRef:
    """A model to be loaded for chunks of one length."""

    model: ModelRef
    context: int
    options: LlamaOptions | TransformersOptions


@dataclass(frozen=True, slots=True)
class StageTask:
    """Stage one shard of the base.

    Attributes:
        group: whose failure this is part of.
        key: the object that this task commits.
        tokens: the shard's chunks, int32 bytes [count, n_ctx].
    """

    group: str
    key: str
    shard: Shard
    engine: EngineRef
    identity: StageIdentity
    tokens: bytes


@dataclass(frozen=True, slots=True)
class MeasureTask:
    """Measure one candidate on one shard.

    Attributes:
        group: whose failure this is part of.
        key: the object that this task commits.
        worst_key: where its worst positions go, before that.
        stage: key of the base stage.
        upto: how many of its first chunks are there; None for all.
    """

    group: str
    key: str
    worst_key: str
    shard: Shard
    engine: EngineRef
    stage: str
    run: str
    candidate: str
    corpus: str
    llama_compat: bool
    upto: int | None = None


Task = StageTask | MeasureTask


@dataclass(frozen=True, slots=True)
class Reply:
    """A task's end: committed, or the error that prevented it."""

    key: str
    error: KldcloudError | None = None
