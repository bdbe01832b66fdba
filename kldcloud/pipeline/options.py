"""A job's engine options as engines take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from kldcloud.errors import UserError
from kldcloud.models.llama_engine import LlamaOptions
from kldcloud.models.model_folder import ModelFolder
from kldcloud.models.transformers_methods import DEQUANTIZED, check_method, unpacked_to
from kldcloud.models.transformers_options import (
    AUTO,
    TransformersOptions,
    resolved_attention,
    resolved_dtype,
)
from kldcloud.pipeline.model_files import FolderModel, Model
from kldcloud.spec.engine import EngineOptions, TransformersSpec

_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
_WIDENED: Final = {"F32": 1, "F16": 1, "BF16": 1}
"""Stored types of what runs in the dtype of the model: weights in one number."""
_CODES: Final = {"F8_E4M3": 1, "I8": 1, "U8": 2, "I32": 8}
"""The same of codes, where they are unpacked; with the fewest bits that they have."""
_UNPACKED: Final = ("compressed-tensors",)
"""Methods whose weights transformers unpacks to the dtype, with the first tokens if not before."""

EngineSettings: TypeAlias = LlamaOptions | TransformersOptions
"""How one model is run; its class says by which engine."""


@dataclass(frozen=True, slots=True)
class Engines:
    """How a launch runs models: GGUF files on llama.cpp, folders of safetensors on transformers.

    Attributes:
        llama: for every GGUF.
        transformers: what the job says for folders.
        threads: that torch divides an operation among.
    """

    llama: LlamaOptions
    transformers: TransformersSpec
    threads: int

    def loaded_bytes(self, model: Model) -> int:
        """What a model's weights take in memory, before anything is computed.

        Raises:
            UserError: as `of`.
        """
        settings = self.of(model)
        if not isinstance(model, FolderModel) or not isinstance(settings, TransformersOptions):
            return model.bytes
        unpacked = settings.dequantize or settings.quantization in _UNPACKED
        weights = _WIDENED | (_CODES if unpacked else {})
        each = _BYTES[settings.dtype]
        return sum(
            each * weights[tensor.dtype] * tensor.elements
            if tensor.dtype in weights
            else tensor.nbytes
            for tensor in model.folder.tensors
        )

    def of(self, model: Model) -> EngineSettings:
        """How a model is run.

        Raises:
            UserError: it needs transformers, or something of its own, that is not here.
        """
        if not isinstance(model, FolderModel):
            return self.llama
        said, device = self.transformers, torch_device(self.transformers)
        dequantize = said.dequantize and model.folder.quantization in DEQUANTIZED
        check_method(model.folder, device, dequantize=dequantize)
        return TransformersOptions(
            dtype=_dtype(said, model.folder, device),
            device=device,
            attention=resolved_attention(said.attention, model.folder.config),
            head=said.head,
            threads=self.threads,
            recipe=model.recipe,
            quantization=model.folder.quantization or "",
            offload=said.offload,
            dequantize=dequantize,
            round_activations=dequantize
            and said.round_activations
            and model.folder.quantization == "fp8",  # the others leave them alone
        )


def _dtype(said: TransformersSpec, folder: ModelFolder, device: str) -> str:
    fixed = unpacked_to(folder)
    if fixed is not None and said.dtype not in {AUTO, fixed}:
        raise UserError(
            f"{folder.path}: {folder.quantization} unpacks its NVFP4 weights to {fixed}, and the"
            f" job says {said.dtype}",
            hint=f"leave engine.transformers.dtype out, or set it to {fixed}",
        )
    return fixed or resolved_dtype(said.dtype, folder.dtype or "", device)


def engines(engine: EngineOptions, threads: int) -> Engines:
    """How models are run on `threads` threads."""
    # Only a person's choice: torch's sums depend on the number, and no run may on the machine's.
    return Engines(llama_options(engine, threads), engine.transformers, engine.threads or 1)


def uses_gpu(engine: EngineOptions, *, folders: bool) -> bool:
    """Whether workers need GPUs of their own.

    Args:
        engine: the job's options, with the cluster's in their place.
        folders: whether transformers runs any model.
    """
    return engine.n_gpu_layers != 0 or (folders and torch_device(engine.transformers) != "cpu")


def torch_device(said: TransformersSpec) -> str:
    """The kind of device that torch runs models on: cpu or cuda.

    Raises:
        UserError: transformers is not installed.
    """
    if said.device != "auto":
        return said.device
    from kldcloud.models.transformers_library import cuda_device

    return "cuda" if cuda_device() else "cpu"


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
