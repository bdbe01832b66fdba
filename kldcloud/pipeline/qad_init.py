"""A file that a job gives as its init, looked at before anything is trained or measured."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from kldcloud.errors import FormatError
from kldcloud.models.llama_tokenizer import open_llama_tokenizer
from kldcloud.models.tokenizer import first_difference
from kldcloud.qad.architectures import check_shapes, map_model

COMPARED_BYTES: Final = 1 << 20
"""Of the text: tokens enough to meet what two vocabularies have different, in half a second."""


def look_at_init(path: Path, teacher: Path | None) -> None:
    """Refuse what cannot be trained, or is no copy of the teacher, without reading weights.

    Args:
        path: of the init.
        teacher: a GGUF of any types; None if it is not here.

    Raises:
        UserError: says which parameter is the first that is wrong.
    """
    init = map_model(path)
    if teacher is not None:
        check_shapes(map_model(teacher, any_type=True), init)


def check_same_tokens(path: Path, teacher: Path, text: Path) -> None:
    """See that the init cuts the beginning of a text as the teacher does.

    Raises:
        FormatError: it does not; the first token that differs is named.
    """
    with text.open("rb") as file:
        beginning = file.read(COMPARED_BYTES).decode(errors="ignore")
    with open_llama_tokenizer(teacher) as tokenizer:
        wanted = tokenizer.text(beginning)
    with open_llama_tokenizer(path) as tokenizer:
        differ = first_difference(wanted, tokenizer.text(beginning), tokenizer)
    if differ is not None:
        raise FormatError(
            f"{path}: cuts data.text differently: token {differ.at:,} is {differ.one} for the"
            f" teacher and {differ.other} for it",
            hint="the init must be a quantised file of the teacher itself",
        )
