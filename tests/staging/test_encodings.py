"""Frames: what goes in comes out, and what is not exactly a chunk's rows is refused at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import zstandard

from kldcloud.divergence.base_rows import BaseRows, CodeRows, LogitRows
from kldcloud.divergence.kernel import encode, token_statistics
from kldcloud.errors import EngineError, FormatError
from kldcloud.models.engine import ChunkOutput
from kldcloud.staging.encodings import (
    PIECE_ROWS,
    Encoding,
    HiddenEncoding,
    KldEncoding,
    LogitsEncoding,
    StageShape,
)
from kldcloud.staging.head import OutputHead
from kldcloud.staging.packed_codes import pack

ROWS, VOCABULARY, WIDTH = 19, 323, 32
SHAPE = StageShape(ROWS, VOCABULARY)
FACTS_BYTES = ROWS * (4 * 8 + 4)


@pytest.fixture(scope="module")
def head() -> OutputHead:
    weights = np.random.default_rng(3).normal(size=(VOCABULARY, WIDTH)).astype("<f4")
    return OutputHead(weights.view(np.uint8).ravel(), "F32", WIDTH, VOCABULARY)


@pytest.fixture(scope="module")
def output(head: OutputHead) -> ChunkOutput:
    hidden = np.random.default_rng(4).normal(size=(ROWS, WIDTH)).astype(np.float32)
    logits = np.empty((ROWS, VOCABULARY), np.float32)
    head.logits(hidden, out=logits)
    return ChunkOutput(logits, hidden)


@pytest.fixture(scope="module")
def tokens() -> npt.NDArray[np.int32]:
    return np.random.default_rng(5).integers(0, VOCABULARY, ROWS).astype(np.int32)


def rows_of(encoding: Encoding, frame: bytes) -> list[BaseRows]:
    """Every piece of a frame, copied out of the buffer that they share."""
    found: list[BaseRows] = []
    for rows in encoding.pieces(frame):
        if isinstance(rows, CodeRows):
            found.append(CodeRows(rows.words.copy(), rows.vocabulary, rows.extras))
        else:
            found.append(LogitRows(rows.logits.copy()))
    return found


def codes_frame(
    output: ChunkOutput, tokens: npt.NDArray[np.int32], change: Callable[[CodeRows], None]
) -> bytes:
    """A frame of codes that were changed before they were packed."""
    rows = encode(output.logits, tokens)
    assert rows.extras is not None
    change(rows)
    facts = np.stack(
        [rows.extras.normaliser, rows.extras.tail, rows.extras.target, rows.extras.entropy]
    )
    return facts.tobytes() + rows.extras.top.tobytes() + pack(rows.words)


def test_codes_and_their_row_facts_come_back_as_they_were(
    output: ChunkOutput, tokens: npt.NDArray[np.int32]
) -> None:
    encoding = LogitsEncoding(SHAPE)
    given = encode(output.logits, tokens)
    pieces = rows_of(encoding, encoding.encode(output, tokens))
    words = np.concatenate([piece.words for piece in pieces if isinstance(piece, CodeRows)])
    assert (words == given.words).all()
    assert given.extras is not None
    for name in ("normaliser", "tail", "target", "entropy", "top"):
        back = np.concatenate([getattr(piece.extras, name) for piece in pieces])  # type: ignore[union-attr]  # codes, as above
        assert (back == getattr(given.extras, name)).all()


def test_frames_of_codes_are_the_same_for_any_number_of_threads(
    output: ChunkOutput, tokens: npt.NDArray[np.int32]
) -> None:
    frames = {LogitsEncoding(SHAPE, threads=n).encode(output, tokens) for n in (1, 2, 3)}
    assert len(frames) == 1


def test_a_frame_made_in_two_steps_is_the_same_and_needs_the_logits_in_the_first_alone() -> None:
    random = np.random.default_rng(6)
    rows = 2 * PIECE_ROWS + 5
    encoding = LogitsEncoding(StageShape(rows, 5000))
    logits = random.normal(0, 4, (rows, 5000)).astype(np.float32)
    following = random.integers(0, 5000, rows).astype(np.int32)
    expected = encoding.encode(ChunkOutput(logits, None), following)
    finish = encoding.begin(ChunkOutput(logits, None), following)
    logits[:] = np.nan
    assert finish() == expected


def test_rows_of_a_base_file_come_back_as_they_were(
    output: ChunkOutput, tokens: npt.NDArray[np.int32]
) -> None:
    encoding = KldEncoding(SHAPE)
    words = encode(output.logits, tokens).words
    pieces = rows_of(encoding, encoding.encode_rows(words))
    assert all(isinstance(piece, CodeRows) and piece.extras is None for piece in pieces)
    assert (np.concatenate([p.words for p in pieces if isinstance(p, CodeRows)]) == words).all()


def test_hidden_states_come_back_as_the_logits_that_they_make(
    output: ChunkOutput, tokens: npt.NDArray[np.int32], head: OutputHead
) -> None:
    encoding = HiddenEncoding(SHAPE, head)
    pieces = rows_of(encoding, encoding.encode(output, tokens))
    logits = np.concatenate([piece.logits for piece in pieces if isinstance(piece, LogitRows)])
    assert (logits == output.logits).all()


@pytest.mark.parametrize(("encoding", "limit"), [("hidden", 1e-8), ("logits", 1e-6)])
def test_a_distribution_against_its_own_frame_diverges_by_nothing(
    encoding: str,
    limit: float,
    output: ChunkOutput,
    tokens: npt.NDArray[np.int32],
    head: OutputHead,
) -> None:
    coder = HiddenEncoding(SHAPE, head) if encoding == "hidden" else LogitsEncoding(SHAPE)
    at, klds = 0, []
    for rows in coder.pieces(coder.encode(output, tokens)):
        part = slice(at, at + rows.rows)
        klds.append(token_statistics(rows, output.logits[part], tokens[part]).kld)
        at += rows.rows
    assert at == ROWS
    assert abs(np.concatenate(klds).mean()) <= limit


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_states_and_logits_that_are_not_finite_are_never_staged(
    value: float, output: ChunkOutput, tokens: npt.NDArray[np.int32], head: OutputHead
) -> None:
    assert output.hidden is not None
    broken = ChunkOutput(output.logits.copy(), output.hidden.copy())
    assert broken.hidden is not None
    broken.logits[3, 7] = broken.hidden[3, 7] = value
    with pytest.raises(EngineError, match="not finite"):
        LogitsEncoding(SHAPE).encode(broken, tokens)
    with pytest.raises(EngineError, match="not finite"):
        HiddenEncoding(SHAPE, head).encode(broken, tokens)


def test_hidden_states_that_the_engine_did_not_give_are_missed(
    output: ChunkOutput, tokens: npt.NDArray[np.int32], head: OutputHead
) -> None:
    with pytest.raises(EngineError, match="no hidden states"):
        HiddenEncoding(SHAPE, head).encode(ChunkOutput(output.logits, None), tokens)


@pytest.mark.parametrize("name", ["logits", "kld"])
def test_a_frame_cut_anywhere_is_refused(
    name: str, output: ChunkOutput, tokens: npt.NDArray[np.int32]
) -> None:
    encoding: Encoding = LogitsEncoding(SHAPE) if name == "logits" else KldEncoding(SHAPE)
    whole = codes_frame(output, tokens, lambda _rows: None)
    frame = whole if name == "logits" else whole[FACTS_BYTES:]
    assert rows_of(encoding, frame)
    for size in {*range(0, len(frame), 97), len(frame) - 1, FACTS_BYTES - 1}:
        with pytest.raises(FormatError):
            rows_of(encoding, frame[:size])


@pytest.mark.parametrize("size", [0, 1, ROWS * 328 * 2 - 1, ROWS * 328 * 2 + 1, 1 << 40])
def test_a_frame_that_claims_another_size_is_never_inflated(size: int) -> None:
    # A zstd frame header by hand: magic, 8-byte content size, single segment; no block follows.
    bomb = b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little")
    with pytest.raises(FormatError, match=f"claims {size} bytes of rows"):
        rows_of(KldEncoding(SHAPE), bomb)


def test_a_frame_that_holds_less_or_more_than_it_claims_is_refused() -> None:
    expected = ROWS * 328 * 2
    for size in (0, expected // 2, expected * 1000):
        packed = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(size))
        # The descriptor byte says that no size follows; say the expected one and keep the rest.
        window = packed[5:6]
        lying = packed[:4] + bytes([packed[4] | 0xC0]) + window + expected.to_bytes(8, "little")
        with pytest.raises(FormatError):
            rows_of(KldEncoding(SHAPE), lying + packed[6:])


@pytest.mark.parametrize("frame", [b"", b"\0" * 40, b"\x28\xb5\x2f\xfd", b"PAR1" * 10])
def test_what_is_no_zstd_frame_is_refused(frame: bytes) -> None:
    with pytest.raises(FormatError):
        rows_of(KldEncoding(SHAPE), frame)


@pytest.mark.parametrize(
    ("word", "value"),
    [(0, np.nan), (0, -1e-6), (0, 1.0), (0, np.inf), (1, np.nan), (1, 0.5), (1, -np.inf)],
)
def test_a_row_with_an_impossible_header_is_refused(
    word: int, value: float, output: ChunkOutput, tokens: npt.NDArray[np.int32]
) -> None:
    def change(rows: CodeRows) -> None:
        rows.words[ROWS - 1, 2 * word : 2 * word + 2] = np.array([value], "<f4").view("<u2")

    with pytest.raises(FormatError, match="scale or minimum"):
        rows_of(LogitsEncoding(SHAPE), codes_frame(output, tokens, change))


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("normaliser", np.nan),
        ("target", np.inf),
        ("tail", -0.1),
        ("tail", 1.5),
        ("entropy", np.nan),
    ],
)
def test_row_facts_that_are_no_probabilities_are_refused(
    fact: str, value: float, output: ChunkOutput, tokens: npt.NDArray[np.int32]
) -> None:
    def change(rows: CodeRows) -> None:
        getattr(rows.extras, fact)[ROWS // 2] = value

    with pytest.raises(FormatError, match="no probabilities"):
        rows_of(LogitsEncoding(SHAPE), codes_frame(output, tokens, change))


@pytest.mark.parametrize("top", [-1, VOCABULARY, 2**31 - 1])
def test_a_top_token_outside_the_vocabulary_is_refused(
    top: int, output: ChunkOutput, tokens: npt.NDArray[np.int32]
) -> None:
    def change(rows: CodeRows) -> None:
        assert rows.extras is not None
        rows.extras.top[0] = top

    with pytest.raises(FormatError):
        rows_of(LogitsEncoding(SHAPE), codes_frame(output, tokens, change))
