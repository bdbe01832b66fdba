"""llama.cpp's base file: read exactly, refused when damaged, written so that the tool reads it."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kldcloud.errors import FormatError, UserError
from kldcloud.staging.kld_file import (
    KldHeader,
    KldWriter,
    read_kld_chunk,
    read_kld_header,
    read_kld_tokens,
    row_codes,
    row_minimum,
    row_scale,
)
from tests.peer import find_peer, run_peer_base, run_peer_kld, statistics_block
from tests.reference import encode_kld_rows
from tests.tiny_models import tiny_pair

PEER = find_peer()
needs_peer = pytest.mark.skipif(PEER is None, reason="llama-perplexity is not built: make peer")

EVEN = KldHeader(n_ctx=8, n_vocab=6, n_chunks=3)
ODD = KldHeader(n_ctx=9, n_vocab=7, n_chunks=2)


def tokens_of(header: KldHeader) -> npt.NDArray[np.int32]:
    count = header.n_chunks * header.n_ctx
    tokens = np.arange(count, dtype=np.int32) % header.n_vocab
    return tokens.reshape(header.n_chunks, header.n_ctx)


def rows_of(header: KldHeader, chunk: int) -> npt.NDArray[np.uint16]:
    rng = np.random.default_rng(chunk)
    logits = rng.standard_normal((header.rows_per_chunk, header.n_vocab)).astype(np.float32)
    return encode_kld_rows(4 * logits)


def write(
    path: Path,
    header: KldHeader,
    *,
    chunks: int | None = None,
    overwrite: bool = False,
    at_the_end: Callable[[], object] = lambda: None,
) -> Path:
    """Write `chunks` (all, if not given), and call `at_the_end` before the file gets its name."""
    with KldWriter(path, header, tokens_of(header), overwrite=overwrite) as writer:
        for chunk in range(header.n_chunks if chunks is None else chunks):
            writer.write_chunk(rows_of(header, chunk))
        at_the_end()
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def with_fields(path: Path, n_ctx: int, n_vocab: int, n_chunks: int) -> Path:
    path.write_bytes(struct.pack("<8siii", b"_logits_", n_ctx, n_vocab, n_chunks) + bytes(100))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(FormatError) as caught:
        read_kld_header(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert caught.value.hint
    return message


@pytest.mark.parametrize("header", [EVEN, ODD], ids=["even", "odd"])
def test_what_is_written_is_read(tmp_path: Path, header: KldHeader) -> None:
    path = write(tmp_path / "base.kld", header)
    assert read_kld_header(path) == header
    np.testing.assert_array_equal(read_kld_tokens(path, header), tokens_of(header))
    for chunk in range(header.n_chunks):
        np.testing.assert_array_equal(read_kld_chunk(path, header, chunk), rows_of(header, chunk))


def test_the_layout_is_the_tools() -> None:
    assert (EVEN.first, EVEN.rows_per_chunk, EVEN.row_words) == (4, 3, 10)
    assert (ODD.first, ODD.rows_per_chunk, ODD.row_words) == (4, 4, 12)
    assert EVEN.chunk_bytes == 3 * 10 * 2
    assert (EVEN.tokens_offset, EVEN.rows_offset) == (20, 20 + 4 * 3 * 8)
    assert EVEN.expected_bytes == 20 + 4 * 3 * 8 + 3 * 60


def test_the_size_of_a_large_base_is_known_beforehand() -> None:
    header = KldHeader(n_ctx=512, n_vocab=248_320, n_chunks=580)
    assert header.rows_per_chunk == 255
    assert header.expected_bytes - header.rows_offset == 580 * 255 * 496_648


def test_the_parts_of_a_row_are_views() -> None:
    rows = rows_of(ODD, 0)
    scale, minimum, codes = row_scale(rows), row_minimum(rows), row_codes(rows, ODD.n_vocab)
    assert scale.dtype == minimum.dtype == np.float32
    assert codes.shape == (ODD.rows_per_chunk, ODD.n_vocab)
    assert np.shares_memory(rows, scale)
    assert np.shares_memory(rows, minimum)
    assert np.shares_memory(rows, codes)
    probabilities = np.exp(scale[:, None] * codes + minimum[:, None])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-3)


def test_a_chunk_is_read_into_the_callers_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "base.kld", EVEN)
    out = np.empty((EVEN.rows_per_chunk, EVEN.row_words), dtype=np.uint16)
    assert read_kld_chunk(path, EVEN, 2, out) is out
    np.testing.assert_array_equal(out, rows_of(EVEN, 2))
    for wrong in (out[:2], out.astype(np.int32), out.repeat(2, axis=1)[:, ::2]):
        with pytest.raises(TypeError, match="out must be"):
            read_kld_chunk(path, EVEN, 2, wrong)  # type: ignore[arg-type]  # the point of the test
    for chunk in (-1, EVEN.n_chunks):
        with pytest.raises(IndexError):
            read_kld_chunk(path, EVEN, chunk)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ((0, 6, 3), "n_ctx is 0"),
        ((2, 6, 3), "n_ctx is 2"),
        ((-8, 6, 3), "n_ctx is -8"),
        ((1 << 25, 6, 3), "n_ctx is 33554432"),
        ((8, 0, 3), "n_vocab is 0"),
        ((8, -6, 3), "n_vocab is -6"),
        ((8, 1 << 25, 3), "n_vocab is 33554432"),
        ((8, 6, 0), "n_chunk is 0"),
        ((8, 6, -1), "n_chunk is -1"),
        ((1 << 24, 6, 1 << 20), "n_chunk * n_ctx is"),
        ((1 << 24, 1 << 24, 1), "bytes a chunk is"),
        ((8, 6, (1 << 28) - 1), "is truncated"),
        ((8, 6, 1), "is too long"),
    ],
)
def test_every_field_of_a_header_is_bounded(
    tmp_path: Path, fields: tuple[int, int, int], expected: str
) -> None:
    assert expected in refusal(with_fields(tmp_path / "bad.kld", *fields))


def test_every_truncation_and_any_excess_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "base.kld", EVEN)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0")
    assert "is too long: 297 bytes" in refusal(path)
    path.write_bytes(whole)
    for size in range(len(whole) - 1, -1, -1):
        os.truncate(path, size)
        assert ("ends within the header" if size < 20 else "is truncated") in refusal(path)


def test_another_file_is_no_kld_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(60))
    assert "is not a .kld file" in refusal(path)


def test_a_path_without_a_file_is_the_users_mistake(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing.kld", ".", "pipe"):
        with pytest.raises(UserError) as caught:
            read_kld_header(tmp_path / name)
        assert not isinstance(caught.value, FormatError)


def test_a_file_that_shrinks_after_its_header_was_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "base.kld", EVEN)
    os.truncate(path, EVEN.rows_offset + 2 * EVEN.chunk_bytes + 5)
    read_kld_chunk(path, EVEN, 1)
    with pytest.raises(FormatError, match="ends within chunk 2"):
        read_kld_chunk(path, EVEN, 2)
    os.truncate(path, EVEN.rows_offset - 1)
    with pytest.raises(FormatError, match="ends within the tokens"):
        read_kld_tokens(path, EVEN)


@pytest.mark.parametrize("token", [-1, 6, 2**31 - 1])
def test_a_token_outside_the_vocabulary_is_refused(tmp_path: Path, token: int) -> None:
    path = write(tmp_path / "base.kld", EVEN)
    with path.open("r+b") as file:
        file.seek(20 + 4 * (8 + 3))
        file.write(struct.pack("<i", token))
    with pytest.raises(FormatError, match=f"token {token} at position 3 of chunk 1"):
        read_kld_tokens(path, EVEN)


@pytest.mark.parametrize("words", [(np.nan, -3.0), (np.inf, -3.0), (-1.0, -3.0), (0.1, -np.inf)])
def test_a_row_that_holds_no_numbers_is_refused(tmp_path: Path, words: tuple[float, float]) -> None:
    path = write(tmp_path / "base.kld", EVEN)
    with path.open("r+b") as file:
        file.seek(EVEN.rows_offset + EVEN.chunk_bytes + 2 * 2 * EVEN.row_words)
        file.write(struct.pack("<ff", *words))
    read_kld_chunk(path, EVEN, 0)
    with pytest.raises(FormatError, match="row 2 of chunk 1"):
        read_kld_chunk(path, EVEN, 1)


def test_a_file_that_is_there_stays_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "base.kld"
    path.write_bytes(b"precious")
    with pytest.raises(UserError, match="is there already"):
        write(path, EVEN)
    assert path.read_bytes() == b"precious"
    write(path, EVEN, overwrite=True)
    assert read_kld_header(path) == EVEN
    assert names(tmp_path) == ["base.kld"]


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "base.kld"
    with pytest.raises(UserError, match="is there already"):
        write(path, EVEN, at_the_end=lambda: path.write_bytes(b"precious"))
    assert path.read_bytes() == b"precious"
    assert names(tmp_path) == ["base.kld"]


def test_an_unfinished_file_never_gets_its_name(tmp_path: Path) -> None:
    seen: list[str] = []
    with pytest.raises(FormatError, match="only 1 of 3 chunks"):
        write(
            tmp_path / "base.kld", EVEN, chunks=1, at_the_end=lambda: seen.extend(names(tmp_path))
        )
    assert seen == ["base.kld.part"]
    assert names(tmp_path) == []


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "base.kld", EVEN, chunks=1, at_the_end=interrupt)
    assert names(tmp_path) == []


def test_a_folder_that_is_not_there_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="check the folder"):
        write(tmp_path / "missing" / "base.kld", EVEN)


def test_rows_and_tokens_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="n_ctx is 1"):
        KldWriter(tmp_path / "a.kld", KldHeader(1, 6, 3), np.zeros((3, 1), dtype=np.int32))
    with pytest.raises(TypeError, match="tokens must be"):
        KldWriter(tmp_path / "b.kld", EVEN, tokens_of(ODD))
    with pytest.raises(FormatError, match="not in the vocabulary of 6"):
        KldWriter(tmp_path / "c.kld", EVEN, tokens_of(EVEN) + np.int32(1))
    with (
        pytest.raises(TypeError, match="rows must be"),
        KldWriter(tmp_path / "d.kld", EVEN, tokens_of(EVEN)) as writer,
    ):
        writer.write_chunk(rows_of(EVEN, 0)[:2])
    with pytest.raises(IndexError, match="all 3 chunks"):
        write(tmp_path / "e.kld", EVEN, chunks=4)
    assert names(tmp_path) == []


def test_the_unused_code_of_an_odd_vocabulary_is_written_as_zero(tmp_path: Path) -> None:
    path = tmp_path / "base.kld"
    rows = rows_of(ODD, 0)
    rows[:, -1] = 0xFFFF
    with KldWriter(path, ODD, tokens_of(ODD)) as writer:
        writer.write_chunk(rows)
        writer.write_chunk(rows)
    assert not read_kld_chunk(path, ODD, 1)[:, -1].any()
    assert (rows[:, -1] == 0xFFFF).all()


@needs_peer
@pytest.mark.parametrize("vocabulary", [320, 321])
def test_a_rewritten_file_is_the_tools_byte_for_byte_and_the_tool_reads_it(
    tmp_path: Path, vocabulary: int
) -> None:
    assert PEER is not None
    pair = tiny_pair(tmp_path, vocabulary=vocabulary, bos=True)
    theirs, ours = tmp_path / "theirs.kld", tmp_path / "ours.kld"
    run_peer_base(PEER, pair.base, theirs, n_ctx=128, chunks=3)
    header = read_kld_header(theirs)
    assert header == KldHeader(n_ctx=128, n_vocab=vocabulary, n_chunks=3)
    with KldWriter(ours, header, read_kld_tokens(theirs, header)) as writer:
        for chunk in range(header.n_chunks):
            writer.write_chunk(read_kld_chunk(theirs, header, chunk))
    assert ours.read_bytes() == theirs.read_bytes()
    blocks = [
        statistics_block(run_peer_kld(PEER, pair.candidate, path, n_ctx=128))
        for path in (theirs, ours)
    ]
    assert blocks[0] == blocks[1]
