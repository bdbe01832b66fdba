"""Conversations from a JSONL file: one a line, in the shape of OpenAI's API or of ShareGPT.

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}

What a message has beside its role and its text is passed over, unless a template would write it:
calls of tools, thoughts that are kept apart and pictures are refused, for numbers of conversations
with holes in them would look like any others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kldcloud.errors import FormatError

MOST_CONVERSATIONS: Final = 1 << 20
MOST_LINE_CHARACTERS: Final = 1 << 22
MOST_MESSAGES: Final = 1 << 12
_LONGEST_ROLE: Final = 64
_MARK: Final = "\ufeff"

_SHAREGPT_ROLES: Final[Mapping[str, str]] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_BESIDE_MESSAGES: Final = ("tools", "functions", "system", "documents")
_BESIDE_CONTENT: Final = (
    "tool_calls",
    "function_call",
    "reasoning_content",
    "reasoning",
    "thinking",
)
_SHAPE: Final = 'each line is {"messages": [{"role": "user", "content": "..."}, ...]}'


@dataclass(frozen=True, slots=True)
class Message:
    """What one side says.

    Attributes:
        role: who speaks, as chat templates call it: system, user, assistant or one of its own.
        content: the text.
    """

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages of one line, in order.

    Attributes:
        line: its number in the file, from 1.
        messages: at least one.
    """

    line: int
    messages: tuple[Message, ...]


def read_conversations(text: str) -> Iterator[Conversation]:
    """The conversations of a file, in order; empty lines are passed over.

    Args:
        text: the file's content.

    Raises:
        FormatError: for the first line that is no conversation of texts alone or that goes beyond
            the bounds above, and for a file with no conversation or with too many.
    """
    found = 0
    for number, line in _lines(text):
        if not line or line.isspace():
            continue
        found += 1
        if found > MOST_CONVERSATIONS:
            raise FormatError(
                f"the file has more than {MOST_CONVERSATIONS:,} conversations",
                hint=f"take fewer of them, such as head -n {MOST_CONVERSATIONS}",
            )
        yield Conversation(number, _messages(_object(line, number), number))
    if not found:
        raise FormatError("the file has no conversation", hint=_SHAPE)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines. JSON allows characters that `splitlines` takes for the end of one.

    The byte order mark that some editors begin a file with is none of the first line's.
    """
    start, number = len(_MARK) if text.startswith(_MARK) else 0, 0
    while start < len(text):
        number += 1
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        if end - start > MOST_LINE_CHARACTERS:
            raise FormatError(
                f"line {number} has {end - start:,} characters, more than {MOST_LINE_CHARACTERS:,}",
                hint="cut that conversation into shorter ones",
            )
        yield number, text[start:end]
        start = end + 1


def _object(line: str, number: int) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except json.JSONDecodeError as error:
        raise _wrong(number, f"is not JSON: {error.msg} at character {error.colno}") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, a thousand brackets
        raise _wrong(number, "is not JSON of texts and lists") from None
    if not isinstance(said, dict):
        raise _wrong(number, f"is {_kind(said)}, not a conversation")
    return said


def _messages(said: Mapping[str, Any], number: int) -> tuple[Message, ...]:
    for key in _BESIDE_MESSAGES:
        if said.get(key):
            hint = f"take '{key}' out, or say it in a message"
            raise _wrong(number, f"has '{key}' beside its messages", hint=hint)
    name = "messages" if "messages" in said else "conversations"
    if name not in said:
        raise _wrong(number, "has no 'messages'")
    listed = said[name]
    if not isinstance(listed, list) or not listed:
        raise _wrong(number, f"has {_kind(listed)} for '{name}', not a list of messages")
    if len(listed) > MOST_MESSAGES:
        hint = "cut that conversation into shorter ones"
        raise _wrong(number, f"has more than {MOST_MESSAGES:,} messages", hint=hint)
    read = _openai_message if name == "messages" else _sharegpt_message
    return tuple(
        read(each, _Place(number, f"{name}[{index}]")) for index, each in enumerate(listed)
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a message is, for what is said of it."""

    line: int
    field: str

    def wrong(self, what: str, *, hint: str = _SHAPE) -> FormatError:
        return FormatError(f"line {self.line}: {self.field} {what}", hint=hint)


def _openai_message(said: object, place: _Place) -> Message:
    if not isinstance(said, dict):
        raise place.wrong(f"is {_kind(said)}, not a message")
    for key in _BESIDE_CONTENT:
        if said.get(key):
            hint = "take the line out: only conversations of texts are measured"
            raise place.wrong(f"has '{key}', which is not part of its text", hint=hint)
    return Message(_role(said, "role", place), _content(said.get("content"), place))


def _sharegpt_message(said: object, place: _Place) -> Message:
    if not isinstance(said, dict):
        raise place.wrong(f"is {_kind(said)}, not a message")
    role = _role(said, "from", place)
    if role not in _SHAREGPT_ROLES:
        hint = f"known are {', '.join(_SHAREGPT_ROLES)}"
        raise place.wrong(f"is from {role!r}, which is nobody's role", hint=hint)
    return Message(_SHAREGPT_ROLES[role], _content(said.get("value"), place))


def _role(said: Mapping[str, Any], key: str, place: _Place) -> str:
    role = said.get(key)
    if not isinstance(role, str) or not role or len(role) > _LONGEST_ROLE:
        raise place.wrong(f"has no '{key}'")
    return _whole(role, place)


def _content(content: object, place: _Place) -> str:
    """The text; several parts of it on lines of their own, as llama.cpp joins them."""
    if isinstance(content, str):
        return _whole(content, place)
    if not isinstance(content, list) or not content:
        raise place.wrong(f"has {_kind(content)} for a text")
    return "\n".join(_whole(_part(each, place), place) for each in content)


def _part(part: object, place: _Place) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) else None
    if kind != "text" or not isinstance(text, str):
        what = f"a part of type {kind[:40]!r}" if isinstance(kind, str) else "a part"
        hint = "take the line out: only conversations of texts are measured"
        raise place.wrong(f"has {what} that is no text", hint=hint)
    return text


def _whole(text: str, place: _Place) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        hint = "write the character whole, or leave it out"
        raise place.wrong(f"has half a character in it ({half})", hint=hint) from None
    return text


def _kind(value: object) -> str:
    """What JSON calls a value."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list" if value else "an empty list"
        case _:
            return "an object"


def _wrong(line: int, what: str, *, hint: str = _SHAPE) -> FormatError:
    return FormatError(f"line {line} {what}", hint=hint)
