"""SentencePiece's kind of tokenizer: from an order of merges to the scores that a GGUF keeps.

SentencePiece joins the two neighbours whose piece has the highest score, whatever two they are;
tokenizer.json lists each pair, in the order of those scores. So the order gives the scores back,
provided that a piece's pairs follow one another and none is missing, which is checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kldcloud.qad.from_folder.refusals import refused_tokenizer

BYTES: Final = frozenset(f"<0x{byte:02X}>" for byte in range(256))
"""Tokens that stand for one byte each."""

_SPACE: Final = "\u2581"
_REPLACES: Final = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_PREPENDS: Final = {"type": "Prepend", "prepend": _SPACE}
_KEEPS_ALL: Final = (
    None,
    # No space is left to split at.
    {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    },
)


def adds_space(path: Path, tokenizer: Mapping[str, Any]) -> bool:
    """Whether a tokenizer reads a text as if it began with a space.

    Args:
        path: of tokenizer.json, for messages.
        tokenizer: what it says.

    Raises:
        FormatError: it treats text otherwise than SentencePiece's tokenizers do.
    """
    normalizer: Any = tokenizer.get("normalizer")
    before = tokenizer.get("pre_tokenizer")
    if before not in _KEEPS_ALL:
        kind = before.get("type") if isinstance(before, dict) else before
        raise refused_tokenizer(path, f"splits text in a way not known here ({str(kind)[:40]})")
    is_sequence = isinstance(normalizer, dict) and normalizer.get("type") == "Sequence"
    steps = normalizer.get("normalizers") if is_sequence else [normalizer]
    if steps == [_REPLACES]:
        return False
    if steps == [_PREPENDS, _REPLACES]:
        return True
    raise refused_tokenizer(path, "changes text first in a way not known here (normalizer)")


def as_text(token: str) -> str:
    """A token that is found in a text as it stands: with spaces for SentencePiece's sign."""
    return token.replace(_SPACE, " ")


def scores_of(
    path: Path,
    tokens: Sequence[str],
    normal: npt.NDArray[np.bool_],
    merges: Sequence[tuple[str, str]],
) -> npt.NDArray[np.float32]:
    """The score of each token.

    Args:
        path: of tokenizer.json, for messages.
        tokens: of the vocabulary.
        normal: bool [V], those that text is made of.
        merges: pairs of tokens that become one, the first one first.

    Returns:
        float32 [V]: less by 1 from each piece to the next; 0 for what no pair makes.

    Raises:
        FormatError: no scores give that order.
    """
    pieces = {token for token, is_normal in zip(tokens, normal, strict=True) if is_normal}
    scores: dict[str, int] = {}
    last = ""
    for left, right in merges:
        piece = left + right
        # Others are found before anything is joined.
        if piece not in pieces:
            continue
        if piece != last and piece in scores:
            raise refused_tokenizer(path, f"makes the token {piece[:40]!r} early and late")
        scores.setdefault(piece, -len(scores) - 1)
        last = piece
    known = set(merges)
    for piece in pieces:
        for at in range(1, len(piece)):
            pair = (piece[:at], piece[at:])
            if pair[0] in pieces and pair[1] in pieces and pair not in known:
                raise refused_tokenizer(
                    path, f"never makes {piece[:40]!r} of {pair[0][:40]!r} and {pair[1][:40]!r}"
                )
    return np.array([scores.get(token, 0) for token in tokens], np.float32)
