"""How GPT-2's kind of tokenizer splits a text first, by the name that llama.cpp has for it.

Patterns are the field's own, as tokenizer.json files have them. A name is only given to exactly
what it stands for; a test has llama.cpp and the tokenizers package split the same texts by each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from kldcloud.qad.from_folder.refusals import refused_tokenizer

DIGIT: Final = r"\p{N}"
GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LATER: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3: Final = _LATER % r"\p{N}{1,3}"
QWEN2: Final = _LATER % DIGIT

NAMES: Final[Mapping[tuple[tuple[str, ...], bool], str]] = MappingProxyType(
    {
        ((GPT2,), False): "gpt-2",
        ((DIGIT, GPT2), False): "smollm",
        ((LLAMA3,), True): "llama-bpe",
        ((LLAMA3,), False): "smaug-bpe",
        ((QWEN2,), False): "qwen2",
    }
)
"""By the patterns in order, and whether a piece that is a token is left whole (ignore_merges)."""

_BYTES: Final = "bytes"
_WHOLE: Final = (("Isolated", False), ("Removed", True))
"""Two ways to say that what matches is a piece; a pattern that takes all leaves nothing else."""


def pre_tokenizer_name(path: Path, tokenizer: Mapping[str, Any]) -> str:
    """What llama.cpp calls the splitting of a tokenizer.

    Args:
        path: of tokenizer.json, for messages.
        tokenizer: what it says.

    Raises:
        FormatError: llama.cpp has no such, or this file does not know it.
    """
    normalizer = tokenizer.get("normalizer")
    # NFC leaves nearly every text as it is; the job's own text shows whether it does.
    if normalizer and normalizer != {"type": "NFC"}:
        raise refused_tokenizer(path, f"changes text first ({_kind(normalizer)})")
    *patterns, last = [*_steps(path, tokenizer.get("pre_tokenizer")), ""]
    if not patterns or patterns.pop() != _BYTES or last or _BYTES in patterns:
        raise refused_tokenizer(path, "its pre_tokenizer does not end in ByteLevel")
    ignores = tokenizer["model"].get("ignore_merges") is True
    name = NAMES.get((tuple(patterns), ignores))
    if name is None:
        known = ", ".join(dict.fromkeys(NAMES.values()))
        said = " then ".join(patterns)
        whole = " and ignore_merges" if ignores else ""
        raise refused_tokenizer(
            path, f"splits text by {said[:80]!r}{whole}, and known here are only {known}"
        )
    return name


def _steps(path: Path, found: object) -> Iterator[str]:
    """The patterns that split a text one after the other, and where pieces become bytes."""
    match found:
        case {"type": "Sequence", "pretokenizers": [*parts]}:
            for part in parts:
                yield from _steps(path, part)
        case {"type": "Digits", "individual_digits": True}:
            yield DIGIT
        case {
            "type": "Split",
            "pattern": {"Regex": str(pattern)},
            "behavior": behavior,
            "invert": invert,
        } if (behavior, invert) in _WHOLE:
            yield pattern
        case {"type": "ByteLevel", "add_prefix_space": False, **others}:
            if others.get("use_regex", True):
                yield GPT2
            yield _BYTES
        case _:
            raise refused_tokenizer(path, f"splits text in a way not known here ({_kind(found)})")


def _kind(found: object) -> str:
    return str(found.get("type") if isinstance(found, dict) else found)[:40]
