"""Texts of tokens, one after the other and by themselves, and the classes they are sorted into."""

from __future__ import annotations

import numpy as np
import pytest

from kldcloud.corpus.token_texts import TOKEN_CLASSES, TokenTexts


def texts(*pieces: bytes, special: int | None = None) -> TokenTexts:
    flags = np.zeros(len(pieces), np.bool_)
    if special is not None:
        flags[special] = True
    return TokenTexts(pieces, flags)


def test_a_character_in_pieces_goes_with_the_token_that_ends_it() -> None:
    euro = "€".encode()
    found = texts(b"a ", euro[:1], euro[1:], b"b")
    assert found.running([0, 1, 2, 3]) == ["a ", "", "€", "b"]
    assert found.running([2, 3]) == ["��", "b"]
    assert found.running([3, 1]) == ["b", ""]


def test_alone_a_part_of_a_character_is_written_out() -> None:
    euro = "€".encode()
    found = texts(euro[:1], euro, b" the")
    assert [found.alone(at) for at in range(3)] == ["\\xe2", "€", " the"]


def test_a_token_that_the_vocabulary_has_not_is_no_text() -> None:
    found = texts(b"a")
    assert found.alone(7) == found.alone(-1) == ""
    assert found.running([0, 9]) == ["a", ""]


@pytest.mark.parametrize(
    ("piece", "kind"),
    [
        (" the", "space and letters"),
        (" été", "space and letters"),
        ("ing", "letters"),
        ("漢字", "letters"),
        ("2024", "digits"),
        (" 7", "digits"),
        (" (", "punctuation"),
        ("'s", "punctuation"),
        ("\n\n", "white space"),
        ("   ", "white space"),
        ("", "special"),
    ],
)
def test_what_a_token_begins_with_is_its_class(piece: str, kind: str) -> None:
    assert TOKEN_CLASSES[texts(piece.encode()).classes[0]] == kind


def test_parts_of_characters_and_tokens_that_steer_are_special() -> None:
    found = texts(b"\xe2", b"<|im_start|>", b"word", special=1)
    assert [TOKEN_CLASSES[each] for each in found.classes] == ["special", "special", "letters"]
