"""The known word nearest to a mistyped one, for "did you mean" in refusals."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST_WORD = 64  # difflib is quadratic in the length: nobody mistypes a longer word
_SIMILAR_ENOUGH = 0.6


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that `word` was probably meant to be, or None.

    Letter case and punctuation do not count: `Q4KM` is `Q4_K_M`, `n-gpu-layers` is `n_gpu_layers`.
    """
    if len(word) > _LONGEST_WORD:
        return None
    by_letters: dict[str, str] = {}
    for candidate in known:
        by_letters.setdefault(_letters(candidate), candidate)
    matches = difflib.get_close_matches(
        _letters(word), list(by_letters), n=1, cutoff=_SIMILAR_ENOUGH
    )
    return by_letters[matches[0]] if matches else None


def did_you_mean(word: str, known: Iterable[str], *, kind: str) -> str:
    """Return "did you mean 'x'?", or the list of what is known where nothing is near.

    Args:
        word: what was typed.
        known: what would have been understood.
        kind: what the known words are, in the plural: "known keys".
    """
    known = list(known)
    match = nearest(word, known)
    return f"did you mean '{match}'?" if match else f"{kind}: {', '.join(known)}"


def _letters(word: str) -> str:
    return "".join(character for character in word.casefold() if character.isalnum())
