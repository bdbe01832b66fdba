"""The output head of a base in safetensors: whether a stage can keep it, and from its file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from kldcloud.errors import FormatError
from kldcloud.models.gguf_header import read_gguf_header
from kldcloud.models.llama_engine import LlamaOptions
from kldcloud.models.model_folder import ModelFolder, read_model_folder
from kldcloud.models.safetensors_header import StoredTensor
from kldcloud.models.transformers_head import TYPE_NAMES, after_head
from kldcloud.models.transformers_load import folder_config
from kldcloud.models.transformers_options import TransformersOptions
from kldcloud.staging.choose import BaseShape
from kldcloud.staging.head import F4, OutputHead, read_head
from kldcloud.staging.states import from_bf16, pack_states

MODELS_OWN_LOGITS: Final = (
    "its logits are taken as the model returns them (engine.transformers.head)"
)
_STORED = ("F32", "F16", "BF16")


def shape_of_folder(folder: ModelFolder, options: TransformersOptions) -> BaseShape:
    """What the choice of an encoding depends on, of a base in safetensors."""
    obstacle = _why_not_hidden(folder, options)
    if obstacle is not None:
        return BaseShape(folder.vocabulary_size, "", 0, obstacle)
    kind = TYPE_NAMES[options.dtype]
    on_gpu = options.device != "cpu"
    return BaseShape(folder.vocabulary_size, kind, folder.hidden_size, None, on_gpu=on_gpu)


def read_base_head(path: Path, options: LlamaOptions | TransformersOptions) -> OutputHead:
    """The head of a base for which nothing stands against hidden states.

    Args:
        path: a GGUF, or a folder of safetensors.
        options: how it is run: a head is kept in the type that it is multiplied in.

    Raises:
        FormatError: the folder has none that can be kept.
    """
    if not isinstance(options, TransformersOptions):
        return read_head(path, read_gguf_header(path))
    folder = read_model_folder(path)
    obstacle = _why_not_hidden(folder, options)
    if folder.head is None or obstacle is not None:
        raise FormatError(f"{path}: {obstacle}", hint="use encoding: logits")
    rows = _read(folder.head.file, folder.head.tensor)
    kind = TYPE_NAMES[options.dtype]
    data = np.frombuffer(pack_states(rows, kind), np.uint8)
    found = _bias(folder)
    bias = None if found is None else _read(folder.head.file, found).reshape(-1)
    after = after_head(folder_config(folder))
    return OutputHead(data, kind, folder.hidden_size, folder.vocabulary_size, bias, after)


def _why_not_hidden(folder: ModelFolder, options: TransformersOptions) -> str | None:
    if options.head != "float32":
        return MODELS_OWN_LOGITS
    if folder.head is None or folder.head.tensor.dtype not in _STORED:
        return "its output head is not stored as a matrix of ordinary numbers"
    return None


def _bias(folder: ModelFolder) -> StoredTensor | None:
    head = folder.head
    if head is None or not head.tensor.name.startswith("lm_head"):
        return None
    name = head.tensor.name.removesuffix("weight") + "bias"
    return next((each for each in folder.tensors if each.name == name), None)


def _read(file: Path, tensor: StoredTensor) -> F4:
    """A tensor as float32, memory of its own."""
    kind = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[tensor.dtype]
    stored = np.memmap(file, kind, "r", tensor.offset, tensor.shape)
    return from_bf16(stored) if tensor.dtype == "BF16" else np.array(stored, np.float32)
