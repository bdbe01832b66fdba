"""profile.json: bytes that round-trip, and one clear line for anything that is not one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kldcloud.errors import FormatError
from kldcloud.report.profile_file import MAX_PROFILE_BYTES, dump_profiles, parse_profiles

BIN = {"low": 0.0, "high": None, "tokens": 3, "mean": 0.1, "error": None}
PROFILE = {
    "candidate": "größe",
    "corpus": "wiki",
    "curve": [[0.5, 0.01], [1.0, 2.5]],
    "by_position": [BIN],
    "by_confidence": [BIN, {**BIN, "tokens": 0, "mean": None}],
    "by_class": [{"name": "letters", "tokens": 3, "mean": 0.1, "error": None}],
}


def changed(**fields: Any) -> bytes:
    whole = json.loads(dump_profiles("run-1", [PROFILE]))
    return json.dumps({**whole, **fields}).encode()


def test_profiles_survive_writing_and_reading() -> None:
    data = dump_profiles("run-1", [PROFILE])
    assert json.loads(data) == {
        "schema": "kldcloud.profile/2",
        "run": "run-1",
        "profiles": [PROFILE],
    }
    found = parse_profiles(data)
    assert found.profiles[0].curve == ((0.5, 0.01), (1.0, 2.5))
    assert dump_profiles(found.run, found.to_json_dict()["profiles"]) == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b" " * (MAX_PROFILE_BYTES + 1),
        b"[" + b"1," * 4_000_000 + b"1]",
        changed(schema="kldcloud.profile/3"),
        changed(profiles=[{**PROFILE, "curve": [[0.5, "0.01"]]}]),
        changed(profiles=[{**PROFILE, "curve": [[0.5, 0.1]] * 1001}]),
        changed(profiles=[{**PROFILE, "by_position": [{**BIN, "tokens": -1}]}]),
        changed(**{"\x1b[2J\n": 1}),
    ],
)
def test_anything_else_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        parse_profiles(data)
    assert str(caught.value).startswith("profile.json: ")
    assert str(caught.value).isprintable()


def test_a_file_of_the_first_version_is_read() -> None:
    earlier = {key: value for key, value in PROFILE.items() if key != "by_class"}
    found = parse_profiles(changed(schema="kldcloud.profile/1", profiles=[earlier]))
    assert found.profiles[0].by_class == ()


def test_a_number_that_json_does_not_know_is_not_written() -> None:
    with pytest.raises(FormatError):
        dump_profiles("run-1", [{**PROFILE, "curve": [[0.5, float("nan")]]}])
