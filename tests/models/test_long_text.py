"""A text that is read in ranges has the places of one that is read whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from kldcloud.errors import FormatError, UserError
from kldcloud.models import long_text
from kldcloud.models.long_text import LongText

WORDS = "Größe, 大きさ, 🙂🙂 and\n\nplain\r\nlines\n" * 7


def opened(folder: Path, text: str) -> LongText:
    path = folder / "text"
    path.write_bytes(text.encode())
    return LongText(path, "the text")


@pytest.mark.parametrize("block", [1, 2, 3, 5, 64, 1 << 20])
@pytest.mark.parametrize("text", [WORDS, WORDS + "\n", WORDS + "🙂", "\n", "a", ""])
def test_places_are_those_of_the_whole_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, text: str
) -> None:
    monkeypatch.setattr(long_text, "_BLOCK_BYTES", block)
    found, whole = opened(tmp_path, text), text.removesuffix("\n")
    assert (found.characters, found.end) == (len(whole), len(whole.encode()))
    for at in range(len(whole) + 1):
        place = found.place(at)
        assert place == len(whole[:at].encode())
        assert found.characters_before(place) == at
    assert b"".join(found.blocks(0, found.end)) == whole.encode()


def test_it_is_cut_behind_a_line_or_else_a_word_or_else_right_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = "-" * 60
    for text, cut in (
        ("ein Größter\nZweig" + rest, "ein Größter\n"),
        # No line ends in the first quarter of what is left.
        ("ein Größter" + rest + "\n", "ein "),
        ("大きさ" * 20, "大き"),
    ):
        found = opened(tmp_path, text)
        assert found.cut(found.place(2)) == len(cut.encode()), text
        assert found.cut(found.end) == found.end
    monkeypatch.setattr(long_text, "_NEAR_BYTES", 4)
    found = opened(tmp_path, "ein Größter\nZweig" + rest)
    assert found.cut(0) == 4


@pytest.mark.parametrize("block", [1, 2, 3, 1 << 20])
@pytest.mark.parametrize("cut", ["大".encode()[:2], b"\xff", b"\xc3("])
def test_what_is_not_utf_8_is_refused_by_its_first_bad_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, cut: bytes
) -> None:
    monkeypatch.setattr(long_text, "_BLOCK_BYTES", block)
    path = tmp_path / "text"
    path.write_bytes("größer".encode() + cut)
    said = f"the text is not UTF-8 text: byte {cut[0]:#04x} at offset 8"
    with pytest.raises(FormatError, match=said):
        LongText(path, "the text")


def test_a_text_is_bounded_and_must_stay_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = opened(tmp_path, WORDS)
    (tmp_path / "text").write_text("short")
    with pytest.raises(UserError, match="has just been changed"):
        found.raw(0, found.end)
    monkeypatch.setattr(long_text, "MOST_BYTES", 3)
    with pytest.raises(UserError, match="has 5 bytes, more than the 3 of a text"):
        LongText(tmp_path / "text", "the text")
