"""The teacher as transformers reads it: its GGUF float for float, and a tokenizer of token ids.

A GGUF's vocabulary does not say how the original tokenizer splits text, and nothing here splits
any: the chunks are tokens already. But the scripts load a tokenizer from the model's folder, and
their trainer takes the ids of special tokens from it. So it gets one whose words are the ids.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from kldcloud.models.gguf_header import read_gguf_header
from kldcloud.qad.architectures import ModelMap, map_model
from kldcloud.qad.hf_folder import WEIGHTS, folder_config, stored_dtype, write_config
from kldcloud.qad.torch_model import read_parameter
from kldcloud.qad.whole_file import whole_file, written

_TOKENIZER, _TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
_UNKNOWN: Final = "0"


def write_teacher(teacher: Path, folder: Path) -> None:
    """Write the folder; its weights last, so that with them it is complete.

    Args:
        teacher: a GGUF of F32, F16 or BF16.
        folder: made if missing.

    Raises:
        FormatError: it cannot be read, or is of another architecture than those that are trained.
        StoreError: no room for it.
    """
    model = map_model(teacher)
    write_config(folder, folder_config(model))
    _write_tokenizer(model, folder)
    tensors = {
        name: torch.from_numpy(read_parameter(model, parameter)).to(stored_dtype(parameter))
        for name, parameter in model.parameters.items()
    }
    with whole_file(folder / WEIGHTS) as part, written(folder / WEIGHTS):
        save_file(tensors, part, metadata={"format": "pt"})


def is_complete(folder: Path) -> bool:
    """Whether `write_teacher` came to its end."""
    return (folder / WEIGHTS).exists()


def _write_tokenizer(model: ModelMap, folder: Path) -> None:
    size = model.hyperparameters.vocabulary
    words = {str(token): token for token in range(size)}
    tokenizer = Tokenizer(WordLevel(words, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    metadata = read_gguf_header(model.path).metadata
    special = {
        f"{word}_token": str(token)
        for word in ("bos", "eos")
        if type(token := metadata.get(f"tokenizer.ggml.{word}_token_id")) is int
        and 0 <= token < size
    }
    # The scripts fill short rows with it, and there are none.
    named = {"unk_token": _UNKNOWN, "eos_token": _UNKNOWN, **special}
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    facts["pad_token"] = facts["eos_token"]
    with written(folder):
        tokenizer.save(str(folder / _TOKENIZER))
        (folder / _TOKENIZER_CONFIG).write_text(json.dumps(facts, indent=2) + "\n")
