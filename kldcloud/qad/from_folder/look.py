"""A first look at a folder that is to be a teacher: no weights, no torch, no transformers."""

from __future__ import annotations

from pathlib import Path

from kldcloud.models.model_folder import read_model_folder
from kldcloud.qad.from_folder.classes import check_class
from kldcloud.qad.from_folder.tokenizer_file import read_tokenizer


def look_at_folder(path: Path) -> None:
    """Refuse what no conversion will take, as far as headers and small files show it.

    Raises:
        UserError: a file cannot be read.
        FormatError: says why.
    """
    folder = read_model_folder(path)
    check_class(folder)
    read_tokenizer(path, folder.vocabulary_size)
