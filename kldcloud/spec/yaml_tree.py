"""YAML text -> plain values that remember their file and line; hostile text costs one error line.

Safe tags only, no merge keys, no repeated keys, bounded size, depth and count (aliases counted as
often as they are used). Dates stay text: no job has one, and `name: 2024-01-01` is a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from kldcloud.errors import SpecError

MAX_BYTES: Final = 1 << 20
_MAX_DEPTH: Final = 32
_MAX_VALUES: Final = 10_000
_LONGEST_NUMBER: Final = 40  # characters: enough for any double, too short for a slow bignum
_CORE: Final = "tag:yaml.org,2002:"
_SCALAR_TAGS: Final = frozenset(_CORE + kind for kind in ("null", "bool", "int", "float", "str"))
_INT_BITS: Final = 64

Scalar = str | int | float | bool | None
Step = str | int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where YAML text came from.

    Attributes:
        label: what a refusal calls it: a path as it was typed, or `--set`.
        folder: what relative paths in it are relative to.
        has_lines: whether a refusal gives the line.
    """

    label: str
    folder: Path
    has_lines: bool = True

    def at(self, line: int) -> str:
        """Return the place for a refusal; lines count from 1."""
        return f"{self.label}:{line}" if self.has_lines else self.label


@dataclass(frozen=True, slots=True)
class Located:
    """A value, and where it was written: the line of its key, or of its entry in a list."""

    value: Scalar | dict[str, Located] | list[Located]
    origin: Origin
    line: int

    @property
    def place(self) -> str:
        return self.origin.at(self.line)


def read_tree(path: Path) -> Located:
    """Read one YAML file, whose top level must be a mapping.

    Raises:
        SpecError: the file is missing, too large, not UTF-8, not YAML, or not a mapping.
    """
    label = str(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise SpecError(
            f"{label}: there is no such file", hint="check the path, or start from jobs/demo.yaml"
        ) from None
    except IsADirectoryError:
        raise SpecError(f"{label}: is a folder, not a file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError(f"{label}: cannot be read: {reason}") from None
    if len(raw) > MAX_BYTES:
        raise SpecError(f"{label}: is larger than {MAX_BYTES} bytes, so it is not a job or cluster")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SpecError(f"{label}:{line}: is not UTF-8 text (byte {error.start})") from None
    tree = parse_tree(text, Origin(label, path.parent))
    if tree.value is None:
        raise SpecError(f"{label}:1: is empty")
    if not isinstance(tree.value, dict):
        raise SpecError(f"{tree.place}: must be a mapping (key: value lines) at the top level")
    return tree


def parse_tree(text: str, origin: Origin) -> Located:
    """Parse one YAML document; no text at all is the value None.

    Raises:
        SpecError: not YAML, or past a bound; one line that names the place.
    """
    try:
        loader = _BoundedLoader(text)
        node = loader.get_single_node()
    except _PastBoundError as error:
        raise SpecError(f"{origin.at(error.line)}: {error.reason}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SpecError(f"{origin.at(line)}: holds a character that YAML does not allow") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = _reason(error)
        raise SpecError(f"{origin.at(mark.line + 1 if mark else 1)}: {reason}") from None
    if node is None:
        return Located(None, origin, 1)
    return _Builder(loader, origin).build(node, node.start_mark.line + 1, depth=1)


def place_of(tree: Located, way: Sequence[Step]) -> str:
    """Return where the value at the end of `way` was written, or the nearest one that was."""
    for step in way:
        below: dict[Step, Located] = {}
        if isinstance(tree.value, dict):
            below.update(tree.value)
        elif isinstance(tree.value, list):
            below.update(enumerate(tree.value))
        if step not in below:
            break
        tree = below[step]
    return tree.place


class _PastBoundError(Exception):
    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, stopped while it composes rather than after."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own class attribute, narrowed
        first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_CORE}timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:  # noqa: ANN401 - PyYAML's signature
        self._depth += 1
        self._count += 1
        line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]  # stub lacks it
        if self._depth > _MAX_DEPTH:
            raise _PastBoundError(line, f"is nested deeper than {_MAX_DEPTH} levels")
        if self._count > _MAX_VALUES:
            raise _PastBoundError(line, f"holds more than {_MAX_VALUES} values")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Builder:
    """Turns PyYAML's nodes into `Located` values, counting each use of an alias."""

    def __init__(self, loader: _BoundedLoader, origin: Origin) -> None:
        self._loader = loader
        self._origin = origin
        self._count = 0

    def build(self, node: yaml.Node, line: int, *, depth: int) -> Located:
        self._count += 1
        if depth > _MAX_DEPTH:
            raise self._refusal(line, f"is nested deeper than {_MAX_DEPTH} levels")
        if self._count > _MAX_VALUES:
            raise self._refusal(line, f"holds more than {_MAX_VALUES} values once aliases are used")
        value: Scalar | dict[str, Located] | list[Located]
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_CORE}map":
            value = self._mapping(node, depth)
        elif isinstance(node, yaml.SequenceNode) and node.tag == f"{_CORE}seq":
            value = [
                self.build(each, each.start_mark.line + 1, depth=depth + 1) for each in node.value
            ]
        elif isinstance(node, yaml.ScalarNode) and node.tag in _SCALAR_TAGS:
            value = self._scalar(node, line)
        else:
            tag = node.tag.replace(_CORE, "!!")[:60]
            raise self._refusal(line, f"the tag {tag!r} is not allowed")
        return Located(value, self._origin, line)

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Located]:
        built: dict[str, Located] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == f"{_CORE}merge":
                raise self._refusal(line, "merge keys (<<) are not supported; write the keys out")
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != f"{_CORE}str":
                shown = repr(str(key_node.value)[:40]) if key_node.id == "scalar" else "here"
                raise self._refusal(line, f"the key {shown} is not text; put it in quotes")
            key = self._checked_text(key_node.value, line)
            if key in built:
                first = built[key].line
                raise self._refusal(line, f"the key {key[:40]!r} is already on line {first}")
            built[key] = self.build(value_node, line, depth=depth + 1)
        return built

    def _scalar(self, node: yaml.ScalarNode, line: int) -> Scalar:
        if node.tag == f"{_CORE}str":
            return self._checked_text(node.value, line)
        if len(node.value) > _LONGEST_NUMBER:
            raise self._refusal(line, "a number is too long")
        try:
            value: Scalar = self._loader.construct_object(node)
        except (ValueError, KeyError, IndexError, OverflowError, yaml.YAMLError):
            tag = node.tag.replace(_CORE, "!!")
            raise self._refusal(line, f"{node.value!r} does not fit the tag {tag}") from None
        if isinstance(value, int) and value.bit_length() > _INT_BITS:
            raise self._refusal(line, "a number is too large")
        return value

    def _checked_text(self, text: str, line: int) -> str:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise self._refusal(line, "holds half of a surrogate pair, which is no text") from None
        return text

    def _refusal(self, line: int, reason: str) -> SpecError:
        return SpecError(f"{self._origin.at(line)}: {reason}")


def _reason(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "cannot be parsed"
    if "'\\t'" in problem:
        return "a tab cannot stand here: indent with spaces"
    if "expected a single document" in (error.context or ""):
        return "holds more than one YAML document"
    context = f" ({error.context})" if error.context else ""
    return f"is not YAML: {problem}{context}"
