"""The bytes that each token of a Hugging Face tokenizer stands for."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WORD_START: Final = "\u2581"
_PRINTED_AS_THEMSELVES: Final = (range(0x21, 0x7F), range(0xA1, 0xAD), range(0xAE, 0x100))
"""Bytes that a byte-level vocabulary writes as the character of the same number; the others follow
one another from U+0100 on (Radford et al., 2019, "Language Models are Unsupervised Multitask
Learners", section 2.2, and the table that its code builds)."""


def token_bytes(tokenizer: Any, size: int) -> tuple[list[bytes], npt.NDArray[np.bool_]]:  # noqa: ANN401
    """Bytes of every token, and which of them steer the model and are no text.

    Args:
        tokenizer: of transformers.
        size: V; what the tokenizer has no token for stands for nothing.

    Returns:
        V pieces, and bool [V].
    """
    byte_level = _is_byte_level(tokenizer)
    added = tokenizer.added_tokens_decoder
    special = np.zeros(size, np.bool_)
    pieces = []
    for token, text in enumerate(_texts(tokenizer, size)):
        if token in added:
            special[token] = bool(added[token].special)
            pieces.append(str(added[token].content).encode())
        elif byte_level:
            pieces.append(_of_characters(text))
        else:
            pieces.append(_of_words(text))
    return pieces, special


def _texts(tokenizer: Any, size: int) -> list[str]:  # noqa: ANN401
    known = min(size, len(tokenizer))
    found = tokenizer.convert_ids_to_tokens(list(range(known)))
    return [each or "" for each in found] + [""] * (size - known)


def _is_byte_level(tokenizer: Any) -> bool:  # noqa: ANN401
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    decoder = json.loads(backend.to_str()).get("decoder") or {}
    parts = [decoder, *decoder.get("decoders", [])]
    return any(part.get("type") == "ByteLevel" for part in parts)


def _of_characters(text: str) -> bytes:
    table = _bytes_of_characters()
    return b"".join(
        bytes([table[each]]) if each in table else each.encode("utf-8", "replace") for each in text
    )


def _of_words(text: str) -> bytes:
    one = _BYTE_TOKEN.fullmatch(text)
    if one:
        return bytes([int(one[1], 16)])
    return text.replace(_WORD_START, " ").encode("utf-8", "replace")


@cache
def _bytes_of_characters() -> dict[str, int]:
    table = {}
    others = 0x100
    for byte in range(0x100):
        if any(byte in each for each in _PRINTED_AS_THEMSELVES):
            table[chr(byte)] = byte
        else:
            table[chr(others)] = byte
            others += 1
    return table
