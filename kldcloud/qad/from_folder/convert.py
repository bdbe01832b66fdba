"""A folder of safetensors as a GGUF in the cache, which is there only once it is proven."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

from kldcloud.errors import FormatError
from kldcloud.models.cache import cache_folder
from kldcloud.models.llama_library import llama
from kldcloud.models.model_folder import ModelFolder, read_model_folder
from kldcloud.models.transformers_tokenizer import TransformersTokenizer
from kldcloud.qad.architectures import map_model
from kldcloud.qad.from_folder.metadata import model_metadata, tokenizer_metadata
from kldcloud.qad.from_folder.numbers import folder_numbers
from kldcloud.qad.from_folder.proof import check_logits, check_tokens
from kldcloud.qad.from_folder.refusals import refused_model
from kldcloud.qad.from_folder.tensors import folder_tensors, main_type
from kldcloud.qad.from_folder.tokenizer_file import read_tokenizer
from kldcloud.qad.gguf_write import write_gguf
from kldcloud.qad.hyperparameters import Hyperparameters
from kldcloud.store.digest import sha256_bytes

_LAYOUT: Final = "kldcloud-folder-gguf/1"
"""Part of the name in the cache: raised whenever the same folder would make another file."""
_NAMES: Final = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""Special tokens, as transformers and as llama.cpp calls them."""
_KEYS: Final = {"query_width": "query_pre_attn_scalar", "softcap": "final_logit_softcapping"}
"""Numbers whose names people know from config.json."""


def folder_gguf(
    path: Path,
    sha256: str,
    texts: Mapping[str, str],
    *,
    note: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The GGUF of a folder, from the cache or made now; its tokens are compared in either case.

    Args:
        path: of the folder.
        sha256: its digest.
        texts: that will be read with it, by what messages call them; the first one's beginning is
            what logits are compared on.
        note: told what was compared, once a file is made.
        progress: called with bytes written and in all.

    Raises:
        FormatError: the folder is not what can be converted here, or the file would be another
            model.
        EngineError: an engine refuses the model.
        StoreError: no room for the file.
    """
    key = sha256_bytes(f"{sha256} {_LAYOUT} {llama().__version__}".encode())[:32]
    target = cache_folder("from-folders", "converted models") / f"{key}.gguf"
    if target.exists():
        check_tokens(path, target, texts)
        return target
    convert_folder(path, target, texts, note=note, progress=progress)
    return target


def convert_folder(
    path: Path,
    target: Path,
    texts: Mapping[str, str],
    *,
    note: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the GGUF of a folder; arguments and errors as of `folder_gguf`."""
    folder = read_model_folder(path)
    numbers = folder_numbers(folder)
    tensors = folder_tensors(folder, numbers)
    kind = main_type(tensors)
    facts = read_tokenizer(path, numbers.vocabulary)
    tokenizer = TransformersTokenizer(path)
    try:
        template = tokenizer.chat_template()
    except FormatError:
        template = ""
    metadata = {
        **model_metadata(numbers, kind),
        **tokenizer_metadata(
            facts,
            {_NAMES[name]: number for name, number in _special(folder, tokenizer).items()},
            template,
            add_bos=tokenizer.vocabulary.add_bos,
        ),
    }

    def check(part: Path) -> None:
        _check_numbers(part, numbers, folder)
        tokens = check_tokens(path, part, texts)
        kld = check_logits(path, part, tokens, context=numbers.context, type_name=kind)
        if note is not None:
            note(
                f"{path.name} is a GGUF of {kind} now: {len(tokens):,} tokens are the same, and"
                f" llama.cpp is {kld:.1g} nats from transformers"
            )

    write_gguf(target, metadata, tensors, check=check, progress=progress)


def _special(folder: ModelFolder, tokenizer: TransformersTokenizer) -> Mapping[str, int]:
    """Special tokens by the tokenizer, or else by config.json, which may name several ends."""
    found = {}
    for name in ("bos", "eos", "pad"):
        said = folder.config.get(f"{name}_token_id")
        number = said[0] if isinstance(said, list) and said else said
        if type(number) is int and 0 <= number < folder.vocabulary_size:
            found[name] = number
    return found | tokenizer.special_tokens()


def _check_numbers(part: Path, numbers: Hyperparameters, folder: ModelFolder) -> None:
    """See that what is read back from a file is what was meant."""
    found, wanted = asdict(map_model(part).hyperparameters), asdict(numbers)
    for name, value in wanted.items():
        if found[name] != value:
            key = _KEYS.get(name, name)
            raise refused_model(
                folder.path, f"{key} is {str(value)[:60]}, which llama.cpp takes for {found[name]}"
            )
