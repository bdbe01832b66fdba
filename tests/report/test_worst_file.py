"""worst.json: bytes that round-trip, and one clear line for anything that is not one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kldcloud.errors import FormatError
from kldcloud.report.worst_file import MAX_WORST_BYTES, dump_worst, parse_worst

POSITION = {
    "chunk": 3,
    "position": 300,
    "kld": 7.25,
    "entropy_base": 0.5,
    "token": "größe\n",
    "probability_base": 0.9,
    "probability": 1e-5,
    "before": [["<s>", None], [" a", 0.25]],
    "after": [],
    "top_base": [["größe\n", 0.9]],
    "top": [],
}
WORST = {"candidate": "Q4_0", "corpus": "wiki", "positions": [POSITION]}


def changed(**fields: Any) -> bytes:
    whole = json.loads(dump_worst("run-1", [WORST]))
    return json.dumps({**whole, **fields}).encode()


def with_position(**fields: Any) -> bytes:
    return changed(worst=[{**WORST, "positions": [{**POSITION, **fields}]}])


def test_positions_survive_writing_and_reading() -> None:
    data = dump_worst("run-1", [WORST])
    assert json.loads(data) == {"schema": "kldcloud.worst/1", "run": "run-1", "worst": [WORST]}
    found = parse_worst(data)
    assert found.worst[0].positions[0].before == (("<s>", None), (" a", 0.25))
    assert dump_worst(found.run, found.to_json_dict()["worst"]) == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b" " * (MAX_WORST_BYTES + 1),
        b"[" + b"1," * 32_000_000 + b"1]",
        changed(schema="kldcloud.worst/2"),
        changed(worst=[{**WORST, "positions": [POSITION] * 1001}]),
        with_position(kld="7"),
        with_position(chunk=-1),
        with_position(token="a" * 70_000),
        with_position(before=[["a"]]),
        with_position(top=[["a", 0.1]] * 17),
        with_position(**{"\x1b[2J\n": 1}),
    ],
)
def test_anything_else_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        parse_worst(data)
    assert str(caught.value).startswith("worst.json: ")
    assert str(caught.value).isprintable()
