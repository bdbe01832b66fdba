"""Which files of a model folder, in Hugging Face's layout, decide its logits and its tokens.

The same rule is used for a repository's list of files, before any is fetched, and for a folder.
It looks for weights where transformers looks, in the same order.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from kldcloud.errors import FormatError

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
WEIGHTS_INDEX: Final = "model.safetensors.index.json"
TOKENIZER_FILES: Final = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "tiktoken.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""All that a tokenizer, or its chat template, is made of; no folder has every one."""

_VOCABULARIES: Final = frozenset(
    {
        "spiece.model",
        "tekken.json",
        "tiktoken.model",
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
    }
)
"""Any of these can be a tokenizer; none of the others can."""
_ADAPTERS: Final = frozenset({"adapter_config.json", "adapter_model.safetensors"})
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SHARD: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,180}\.safetensors")
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class FolderFiles:
    """What a folder has of a model.

    Attributes:
        tokenizer: names of its tokenizer's files, sorted.
        index: the file that names the shards; None where one file has all weights.
    """

    tokenizer: tuple[str, ...]
    index: str | None


def choose_files(names: Collection[str], place: str) -> FolderFiles:
    """Find a model among the names of a folder's files, or say what is there instead.

    Args:
        names: of the files; those with a `/` in them lie in folders of it and do not count.
        place: what messages call the folder: a path, or the URI of a repository.

    Raises:
        FormatError: there are no safetensors of a whole model, no configuration or no tokenizer.
    """
    here = {name for name in names if "/" not in name}
    if WEIGHTS not in here and WEIGHTS_INDEX not in here:
        raise _no_weights(here, place)
    if CONFIG not in here:
        raise FormatError(f"{place} has no {CONFIG}", hint="give the folder that has all of it")
    if "adapter_config.json" in here:
        # transformers would look for another model in the adapter's place.
        raise _is_adapter(place)
    if not here & _VOCABULARIES:
        raise FormatError(
            f"{place} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json)",
            hint="add the tokenizer files of the original model",
        )
    tokenizer = tuple(name for name in TOKENIZER_FILES if name in here)
    return FolderFiles(tokenizer, None if WEIGHTS in here else WEIGHTS_INDEX)


def is_shard(name: object) -> bool:
    """Whether an index may call a file of its own folder so: never a path that leads elsewhere."""
    return isinstance(name, str) and _SHARD.fullmatch(name) is not None


def _no_weights(names: Collection[str], place: str) -> FormatError:
    if _ADAPTERS & set(names):
        return _is_adapter(place)
    if others := _ending(names, ".safetensors"):
        return FormatError(
            f"{place} has {others}, but neither {WEIGHTS} nor {WEIGHTS_INDEX}",
            hint="give a folder as transformers' save_pretrained writes it",
        )
    if ggufs := _ending(names, ".gguf"):
        first = min(name for name in names if name.lower().endswith(".gguf"))
        return FormatError(
            f"{place} holds GGUF files ({ggufs}), of which each is a model",
            hint=f"name one, such as {_inside(place, first)}",
        )
    if pickles := _ending(names, *_PICKLES):
        return FormatError(
            f"{place} holds its weights as pickles ({pickles}), which can run any code",
            hint="convert them to safetensors, or find a revision that has them",
        )
    return FormatError(
        f"{place} holds no model: there is no {WEIGHTS} in it",
        hint="give a GGUF file, or a folder of safetensors",
    )


def _is_adapter(place: str) -> FormatError:
    return FormatError(
        f"{place} holds an adapter, which changes a model that is elsewhere",
        hint="merge it into its model and give the folder of that",
    )


def _inside(place: str, name: str) -> str:
    """How a job names a file of the folder or the repository."""
    repository, at, revision = place.rpartition("@")
    if not place.startswith("hf:") or not at:
        return f"{place}/{name}"
    return f"{repository}/{name}" + ("" if revision == "main" else f"@{revision}")


def _ending(names: Collection[str], *suffixes: str) -> str:
    """The first few names that end so, for a message."""
    found = sorted(name for name in names if name.lower().endswith(suffixes))
    return ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
