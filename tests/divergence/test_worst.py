"""What is kept of a chunk's worst positions, and the object that holds it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from synthetic_records import identity

from kldcloud.divergence.base_rows import LogitRows
from kldcloud.divergence.kernel import token_statistics
from kldcloud.divergence.top_tokens import TOP
from kldcloud.divergence.worst import (
    KEPT_A_CHUNK,
    WorstRows,
    largest_rows,
    worst_of_chunk,
    worst_of_piece,
)
from kldcloud.divergence.worst_file import dump_worst, most_bytes, of_chunks, parse_worst
from kldcloud.errors import FormatError

VOCABULARY = 200


def chunk(seed: int, rows: int = 100, piece: int = 100) -> WorstRows:
    """A chunk's worst positions, its rows taken `piece` at a time."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 2, (rows, VOCABULARY)).astype(np.float32)
    logits = (base + rng.normal(0, 0.5, (rows, VOCABULARY))).astype(np.float32)
    tokens = rng.integers(0, VOCABULARY, rows).astype(np.int32)
    pieces = []
    for at in range(0, rows, piece):
        part = slice(at, at + piece)
        side = LogitRows(base[part])
        statistics = token_statistics(side, logits[part], tokens[part], llama_compat=False)
        pieces.append(worst_of_piece(side, logits[part], tokens[part], statistics, first_row=at))
    return worst_of_chunk(pieces)


def plain(found: WorstRows) -> list[Any]:
    tops = (found.base, found.candidate)
    columns = [found.rows, found.kld, *(x for t in tops for x in (t.tokens, t.probabilities))]
    return [each.tolist() for each in columns]


@pytest.mark.parametrize("piece", [1, 7, 64, 99])
def test_how_a_chunk_is_decoded_changes_nothing(piece: int) -> None:
    whole = chunk(1)
    assert len(whole.rows) == KEPT_A_CHUNK
    assert plain(chunk(1, piece=piece)) == plain(whole)


def test_a_short_chunk_keeps_all_of_its_positions() -> None:
    assert chunk(2, rows=5).rows.tolist() == [0, 1, 2, 3, 4]


def test_the_largest_are_chosen_and_the_earlier_of_equals() -> None:
    kld = np.array([0.1, 5.0, 0.1, 2.0, 0.1])
    assert largest_rows(kld, 2).tolist() == [1, 3]
    assert largest_rows(kld, 3).tolist() == [0, 1, 3]
    assert largest_rows(kld, 9).tolist() == [0, 1, 2, 3, 4]


def test_an_object_holds_what_was_put_in() -> None:
    chunks = [chunk(seed, rows=60) for seed in (3, 4)]
    whose = identity(7, 2)
    worst = of_chunks(chunks, first=7, first_position=64)
    data = dump_worst(worst, whose)
    assert data == dump_worst(of_chunks(chunks, first=7, first_position=64), whose)
    assert len(data) <= most_bytes(2)
    found = parse_worst(data, expected=whose, name="it")
    assert found.chunk.tolist() == [7] * KEPT_A_CHUNK + [8] * KEPT_A_CHUNK
    assert found.position.tolist() == [64 + row for each in chunks for row in each.rows]
    for side in ("base", "candidate"):
        parts = [getattr(each, side) for each in chunks]
        read = getattr(found, side)
        assert read.tokens.shape == (2 * KEPT_A_CHUNK, TOP)
        assert read.tokens.tolist() == np.concatenate([each.tokens for each in parts]).tolist()
        shares = np.concatenate([each.probabilities for each in parts])
        assert read.probabilities.tolist() == shares.tolist()


def header(data: bytes, **changes: Any) -> bytes:
    line, _, body = data.partition(b"\n")
    return json.dumps(json.loads(line) | changes, sort_keys=True).encode() + b"\n" + body


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda _: b"", "line of JSON"),
        (lambda _: b"[1]\n", "line of JSON"),
        (lambda _: b"[" * 20_000 + b"\n", "line of JSON"),
        (lambda data: data[:-1], "positions|sha256|length"),
        (lambda data: data + b"\0" * 88, "positions"),
        (lambda data: data[:-4] + b"\0\0\0\x01", "sha256"),
        (lambda data: header(data, run="another"), "run"),
        (lambda data: header(data, first_chunk=8), "first_chunk"),
        (lambda data: header(data, version=2), "version"),
        (lambda data: header(data, positions=1 << 40), "positions"),
    ],
)
def test_what_is_damaged_is_refused_by_name(damage: Callable[[bytes], bytes], reason: str) -> None:
    whose = identity(7, 1)
    data = dump_worst(of_chunks([chunk(3, rows=60)], first=7, first_position=64), whose)
    with pytest.raises(FormatError, match=f"runs/x/it.bin.*({reason})"):
        parse_worst(damage(data), expected=whose, name="runs/x/it.bin")


def test_what_is_no_probability_or_of_another_chunk_is_refused() -> None:
    whose = identity(7, 1)
    good = of_chunks([chunk(3, rows=60)], first=7, first_position=64)
    for share in (np.nan, -0.1, 1.5):
        base = replace(good.base, probabilities=np.full_like(good.base.probabilities, share))
        with pytest.raises(FormatError, match="no probability"):
            parse_worst(dump_worst(replace(good, base=base), whose), expected=whose, name="it")
    elsewhere = replace(good, chunk=good.chunk + np.int32(1))
    with pytest.raises(FormatError, match="other chunks"):
        parse_worst(dump_worst(elsewhere, whose), expected=whose, name="it")
