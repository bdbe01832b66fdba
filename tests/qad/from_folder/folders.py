"""Tiny model folders of each architecture, made of tiny GGUFs, to be made GGUFs again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.model_folders import folder_of
from tests.qad.from_folder.byte_tokenizers import SPECIAL, byte_tokenizer, write_byte_tokenizer
from tests.qad.tiny_architectures import VOCABULARY, TinyShape, tiny_model

SMALL = {"width": 64, "layers": 2, "head_width": 16, "feed_forward": 64}


def tiny_folder(
    place: Path,
    shape: TinyShape,
    *,
    pre: str | None = None,
    bos: bool = False,
    dtype: str = "float32",
    max_shard: str = "5GB",
) -> Path:
    """Write ``model.gguf`` and, with the same weights, the folder ``folder``.

    Args:
        place: made if missing.
        shape: of the model.
        pre: how its tokenizer splits, of `byte_tokenizers.PATTERNS`; None for the GGUF's own
            tokenizer, which is of SentencePiece's kind.
        bos: whether that begins a text with a special token.
        dtype: of the folder's weights.
        max_shard: as `folder_of`.

    Returns:
        The folder.
    """
    place.mkdir(parents=True, exist_ok=True)
    model = tiny_model(place / "model.gguf", shape)
    folder = folder_of(model, place / "folder", dtype=dtype, max_shard=max_shard)
    if pre is not None:
        made = byte_tokenizer(pre, size=VOCABULARY - len(SPECIAL) - 5, bos=bos)
        write_byte_tokenizer(folder, made)
    return folder


def configure(folder: Path, **changes: Any) -> None:
    """Change config.json; None takes a key out."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: each for key, each in values.items() if each is not None}))
