"""What a folder of safetensors says about its model, read without its weights or any trust in it.

The folder has Hugging Face's layout. Everything that decides what a loader would do is checked
first: sizes before reading, names before opening, headers against their files, and the index
against the headers. Pickles that lie beside safetensors are never opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kldcloud.errors import FormatError, UserError
from kldcloud.models.bounded_json import read_json_object
from kldcloud.models.folder_bounds import check_layer_counts
from kldcloud.models.folder_config import read_folder_config
from kldcloud.models.folder_files import CONFIG, WEIGHTS, FolderFiles, choose_files, is_shard
from kldcloud.models.regular_file import DOWNLOAD_AGAIN
from kldcloud.models.safetensors_header import (
    SafetensorsHeader,
    StoredTensor,
    read_safetensors_header,
)

_MAX_INDEX_BYTES = 64 << 20
_MAX_VALUES = 1 << 22
_MAX_SHARDS = 4096
_HEADS: Final = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS: Final = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
)
_NUMBERS: Final = ("BF16", "F16", "F32", "F64")
_RANK = 2


@dataclass(frozen=True, slots=True)
class HeadTensor:
    """The matrix that turns hidden states into logits.

    Attributes:
        file: which of the weight files it is in.
        tensor: its name, dtype, shape ``(V, d)``, and place in that file.
    """

    file: Path
    tensor: StoredTensor


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model in a folder, by its configuration and the headers of its weight files.

    Attributes:
        path: the folder.
        config: what config.json says, as JSON; nothing in it is trusted beyond what is below.
        architecture: the first of its `architectures`, such as ``"LlamaForCausalLM"``.
        model_type: such as ``"llama"``.
        vocabulary_size: rows of the output head, V.
        hidden_size: of the hidden states, d; nearly always the columns of the head.
        tied_embeddings: whether it says that the head is the embedding; None where it leaves that
            to its architecture.
        dtype: that it wants to be computed in, such as ``"bfloat16"``; None where it says none.
        quantization: the method, in transformers' words: ``"compressed-tensors"``, ``"fp8"``,
            ``"awq"``, ``"gptq"``, ``"bitsandbytes"``, ``"torchao"``, ...; None if it is not.
        files: that decide its logits and tokens, by name, sorted: no README, no generation
            settings.
        weight_files: those with tensors, in the order of their names.
        tensor_bytes: of all tensors' data.
        tensors: all of them, in the order of the weight files.
        head: where the head is; None where it is not stored as one matrix of numbers (quantised)
            or has a name of its own.
    """

    path: Path
    config: Mapping[str, Any] = field(repr=False)
    architecture: str
    model_type: str
    vocabulary_size: int
    hidden_size: int
    tied_embeddings: bool | None
    dtype: str | None
    quantization: str | None
    files: tuple[str, ...]
    weight_files: tuple[Path, ...]
    tensor_bytes: int
    tensors: tuple[StoredTensor, ...] = field(repr=False)
    head: HeadTensor | None

    @property
    def needs_remote_code(self) -> bool:
        """Whether its configuration names Python code of its own that transformers could run."""
        return "auto_map" in self.config


def read_model_folder(path: Path) -> ModelFolder:
    """Read and check a model's folder.

    Args:
        path: of the folder; it and its files may be links, as in Hugging Face's cache.

    Raises:
        UserError: there is no such folder, or a file cannot be read.
        FormatError: it is no whole model in safetensors, is truncated, contradicts itself, or goes
            beyond the bounds above.
    """
    chosen = choose_files(_names(path), str(path))
    config = read_folder_config(path / CONFIG)
    shards = _shards(path, chosen)
    headers = {name: read_safetensors_header(path / name) for name in shards}
    _check_shards(path, shards, headers)
    tensors = tuple(each for header in headers.values() for each in header.tensors.values())
    check_layer_counts(path / CONFIG, config.values, tensors)
    head = _find_head(path, headers, tied=config.tied_embeddings)
    _check_head(path, config.vocabulary_sizes, head)
    sizes = (head.tensor.shape[0],) if head else config.vocabulary_sizes
    widths = (config.hidden_size, head.tensor.shape[1] if head else None)
    hidden_size = next((each for each in widths if each is not None), None)
    if not sizes or hidden_size is None:
        raise FormatError(
            f"{path / CONFIG}: says no vocab_size or no hidden_size, nor does the output head",
            hint="give the folder of a language model",
        )
    index = (chosen.index,) if chosen.index else ()
    return ModelFolder(
        path=path,
        config=config.values,
        architecture=config.architecture,
        model_type=config.model_type,
        vocabulary_size=sizes[0],
        hidden_size=hidden_size,
        tied_embeddings=config.tied_embeddings,
        dtype=config.dtype,
        quantization=config.quantization,
        files=tuple(sorted((CONFIG, *index, *chosen.tokenizer, *shards))),
        weight_files=tuple(path / name for name in shards),
        tensor_bytes=sum(header.tensor_bytes for header in headers.values()),
        tensors=tensors,
        head=head,
    )


def model_file_names(path: Path) -> tuple[str, ...]:
    """`ModelFolder.files` of a folder of which only the list of its files is looked at.

    Raises:
        UserError: as `read_model_folder`.
        FormatError: a file is missing.
    """
    chosen = choose_files(_names(path), str(path))
    index = (chosen.index,) if chosen.index else ()
    return tuple(sorted((CONFIG, *index, *chosen.tokenizer, *_shards(path, chosen))))


def read_weight_map(path: Path) -> dict[str, str]:
    """Read the index of a model that is in several files.

    Returns:
        Tensor's name -> name of a file beside the index.

    Raises:
        UserError: it cannot be read.
        FormatError: it is no such index, or names anything but files beside it.
    """
    index = read_json_object(path, max_bytes=_MAX_INDEX_BYTES, max_values=_MAX_VALUES)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{path}: has no weight_map", hint=DOWNLOAD_AGAIN)
    for tensor, shard in weight_map.items():
        if not is_shard(shard):
            raise FormatError(
                f"{path}: tensor {tensor[:80]!r} is in {str(shard)[:80]!r},"
                " which is no safetensors file beside it",
                hint=DOWNLOAD_AGAIN,
            )
    shards = len(set(weight_map.values()))
    if shards > _MAX_SHARDS:
        raise FormatError(
            f"{path}: names {shards:,} files, more than {_MAX_SHARDS:,}", hint=DOWNLOAD_AGAIN
        )
    return weight_map


def _names(path: Path) -> list[str]:
    try:
        return [each.name for each in path.iterdir()]
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise UserError(f"{path}: {reason}", hint="check the path of the model") from error
    except ValueError:  # a NUL in the path
        raise UserError(f"{str(path)!r}: is no path", hint="check the path of the model") from None


def _shards(path: Path, chosen: FolderFiles) -> dict[str, dict[str, str]]:
    """The weight files in order, each with what the index says of it: tensor's name -> its own."""
    if chosen.index is None:
        return {WEIGHTS: {}}
    shards: dict[str, dict[str, str]] = {}
    for tensor, shard in read_weight_map(path / chosen.index).items():
        shards.setdefault(shard, {})[tensor] = shard
    for name in shards:
        # A link to nothing is what an interrupted download leaves in Hugging Face's cache.
        if not (path / name).exists():
            raise FormatError(f"shard {name} is missing in {path}", hint=DOWNLOAD_AGAIN)
    return dict(sorted(shards.items()))


def _check_shards(
    path: Path,
    shards: Mapping[str, Mapping[str, str]],
    headers: Mapping[str, SafetensorsHeader],
) -> None:
    first: dict[str, str] = {}
    for name, header in headers.items():
        for tensor in shards[name]:
            if tensor not in header.tensors:
                raise FormatError(
                    f"{path / name}: has no tensor {tensor[:80]!r}, which the index says it has",
                    hint=DOWNLOAD_AGAIN,
                )
        for tensor in header.tensors:
            if first.setdefault(tensor, name) != name:
                raise FormatError(
                    f"{path / name}: has the tensor {tensor[:80]!r}, and so has {first[tensor]}",
                    hint=DOWNLOAD_AGAIN,
                )
    if not first:
        raise FormatError(f"{path}: there is no tensor in its weights", hint=DOWNLOAD_AGAIN)


def _find_head(
    path: Path, headers: Mapping[str, SafetensorsHeader], *, tied: bool | None
) -> HeadTensor | None:
    tensors = [
        HeadTensor(path / file, tensor)
        for file, header in headers.items()
        for tensor in header.tensors.values()
    ]
    has_own = any("lm_head." in each.tensor.name for each in tensors)
    names = _HEADS if tied is False or has_own else _HEADS + _EMBEDDINGS
    found = [
        each
        for each in tensors
        if f".{each.tensor.name}".endswith(tuple(f".{name}" for name in names))
        and len(each.tensor.shape) == _RANK
        and each.tensor.dtype in _NUMBERS
    ]
    # Heads that predict later tokens, and embeddings of pictures, lie deeper in a model.
    return min(found, key=lambda each: each.tensor.name.count("."), default=None)


def _check_head(path: Path, stated: tuple[int, ...], head: HeadTensor | None) -> None:
    if head is None or not stated or head.tensor.shape[0] in stated:
        return
    shape = " x ".join(map(str, head.tensor.shape))
    raise FormatError(
        f"{path / CONFIG}: vocab_size is {stated[0]:,}, but {head.tensor.name} is {shape}",
        hint=DOWNLOAD_AGAIN,
    )
