"""A YAML file from a stranger costs one line, and never time or memory."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from kldcloud.errors import SpecError
from kldcloud.spec.yaml_tree import read_tree

SEVEN_LETTERS = "abcdefg"


def refusal_of(folder: Path, content: str | bytes) -> str:
    """The refusal of a file with that content, without the folder; it is one line."""
    path = folder / "x.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(SpecError) as caught:
        read_tree(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}:")
    return message.removeprefix(f"{folder}/")


def billion_laughs() -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for before, letter in itertools.pairwise(SEVEN_LETTERS):
        lines.append(f"{letter}: &{letter} [{', '.join([f'*{before}'] * 10)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "x.yaml:1: is empty"),
        ("# only a comment\n", "x.yaml:1: is empty"),
        ("- a\n- b\n", "x.yaml:1: must be a mapping (key: value lines) at the top level"),
        ("just words", "x.yaml:1: must be a mapping (key: value lines) at the top level"),
        ("a: 1\nb:\n\tc: 2\n", "x.yaml:3: a tab cannot stand here: indent with spaces"),
        ("a: 1\na: 2\n", "x.yaml:2: the key 'a' is already on line 1"),
        ("a:\n  b: 1\n  'b': 2\n", "x.yaml:3: the key 'b' is already on line 2"),
        ("on: 1\n", "x.yaml:1: the key 'on' is not text; put it in quotes"),
        ("a:\n  3: x\n", "x.yaml:2: the key '3' is not text; put it in quotes"),
        ("? [a, b]\n: 1\n", "x.yaml:1: the key here is not text; put it in quotes"),
        (
            "a: &a {b: 1}\nc:\n  <<: *a\n",
            "x.yaml:3: merge keys (<<) are not supported; write the keys out",
        ),
        ("a: 1\n---\na: 2\n", "x.yaml:2: holds more than one YAML document"),
        (
            "a: !!python/object:os.system x",
            "x.yaml:1: the tag '!!python/object:os.system' is not allowed",
        ),
        (
            "a: !!python/object/apply:os.system ['exit 1']",
            "x.yaml:1: the tag '!!python/object/apply:os.system' is not allowed",
        ),
        ("a: !!binary aGk=", "x.yaml:1: the tag '!!binary' is not allowed"),
        ("a: !mine x", "x.yaml:1: the tag '!mine' is not allowed"),
        ("a: !!int x", "x.yaml:1: 'x' does not fit the tag !!int"),
        ("a: !!bool x", "x.yaml:1: 'x' does not fit the tag !!bool"),
        (f"a: {'9' * 5000}", "x.yaml:1: a number is too long"),
        (f"a: {'9' * 30}", "x.yaml:1: a number is too large"),
        (f"a: 1{':59' * 300_000}", "x.yaml:1: a number is too long"),
        ('a: "\\ud800"', "x.yaml:1: holds half of a surrogate pair, which is no text"),
        ("a: 1\nb: \x07\n", "x.yaml:2: holds a character that YAML does not allow"),
        (b"a: 1\nb: caf\xe9\n", "x.yaml:2: is not UTF-8 text (byte 11)"),
        ("a: x\n".encode("utf-16"), "x.yaml:1: is not UTF-8 text (byte 0)"),
        (b"\x00" * 100, "x.yaml:1: holds a character that YAML does not allow"),
        ("a: [1, 2\nb: 3\n", "x.yaml:2: is not YAML: "),
        ("a: *nobody\n", "x.yaml:1: is not YAML: found undefined alias 'nobody'"),
        ("a: " + "[" * 100 + "]" * 100, "x.yaml:1: is nested deeper than 32 levels"),
        ("[" * 1_000_000, "x.yaml:1: is nested deeper than 32 levels"),
        ("- " * 100, "x.yaml:1: is nested deeper than 32 levels"),
        ("a: &a [*a]", "x.yaml:1: is nested deeper than 32 levels"),
        (billion_laughs(), "x.yaml:1: holds more than 10000 values once aliases are used"),
        ("a:\n" + "- x\n" * 200_000, "x.yaml:9999: holds more than 10000 values"),
        (
            b"#" * (10 << 20),
            "x.yaml: is larger than 1048576 bytes, so it is not a job or cluster",
        ),
    ],
)
def test_a_hostile_or_mistyped_file_is_refused_in_one_line(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    refusal = refusal_of(tmp_path, content)
    if message.endswith(": "):
        refusal = refusal[: len(message)]
    assert refusal == message


def test_a_file_that_is_not_there_or_is_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        read_tree(tmp_path / "none.yaml")
    missing = f"{tmp_path}/none.yaml: there is no such file"
    assert str(caught.value) == f"{missing}; check the path, or start from jobs/demo.yaml"
    with pytest.raises(SpecError) as caught:
        read_tree(tmp_path)
    assert str(caught.value) == f"{tmp_path}: is a folder, not a file"


def test_an_endless_file_is_read_no_further_than_the_limit() -> None:
    with pytest.raises(SpecError, match=r"^/dev/zero: is larger than 1048576 bytes"):
        read_tree(Path("/dev/zero"))


def test_a_date_stays_text_and_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: 2024-01-01\n")
    tree = read_tree(path)
    assert isinstance(tree.value, dict)
    assert tree.value["name"].value == "2024-01-01"


def test_a_modest_use_of_aliases_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: &text {name: t}\nb: [*text, *text]\n")
    tree = read_tree(path)
    assert isinstance(tree.value, dict)
    assert isinstance(tree.value["b"].value, list)
    assert len(tree.value["b"].value) == 2
