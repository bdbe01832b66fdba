"""Conversations: what a line may say, and that every other line is refused with its number."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kldcloud.corpus import chat
from kldcloud.corpus.chat import Conversation, Message, read_conversations
from kldcloud.errors import FormatError

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}


def lines(*said: Any) -> str:
    """A JSONL file; texts are lines as they are."""
    return "".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in said)


def of(*messages: Any, **beside: Any) -> dict[str, Any]:
    return {"messages": list(messages), **beside}


def user(content: Any, **beside: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **beside}


def test_each_line_is_a_conversation_with_its_number() -> None:
    text = lines(GOOD, "", "   ", of(user("Zürich €\n")))
    assert list(read_conversations(text)) == [
        Conversation(1, (Message("user", "Hi"), Message("assistant", "Ho"))),
        Conversation(4, (Message("user", "Zürich €\n"),)),
    ]
    assert list(read_conversations(text.rstrip("\n"))) == list(read_conversations(text))
    assert list(read_conversations(text.replace("\n", "\r\n"))) == list(read_conversations(text))
    assert list(read_conversations(f"\ufeff{text}")) == list(read_conversations(text))


def test_a_line_ends_at_a_newline_and_at_nothing_else() -> None:
    # JSON may hold these as they are; str.splitlines would break the line at each.
    content = "a\u2028b\u2029c\x85d"
    text = json.dumps(of(user(content)), ensure_ascii=False)
    (conversation,) = read_conversations(text)
    assert conversation.messages[0].content == content


def test_sharegpt_says_the_same_in_other_words() -> None:
    shared = {
        "id": "x",
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Ho", "weight": 1},
        ],
    }
    plain = of(
        {"role": "system", "content": "Be brief."},
        user("Hi"),
        {"role": "assistant", "content": "Ho"},
    )
    (one,), (other,) = (list(read_conversations(lines(each))) for each in (shared, plain))
    assert one == other


def test_parts_of_text_are_joined_with_a_newline_and_roles_are_the_templates_affair() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    (found,) = read_conversations(lines(of({"role": "ipython", "content": parts}, user("x"))))
    assert found.messages == (Message("ipython", "one\ntwo"), Message("user", "x"))


def test_what_says_nothing_of_the_text_is_passed_over() -> None:
    beside = {"tool_calls": [], "function_call": None, "name": "Eve", "weight": 0}
    said = {**of(user("x", **beside)), "id": 7, "tools": None, "source": "there"}
    (found,) = read_conversations(lines(said))
    assert found.messages == (Message("user", "x"),)


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
REFUSED = {
    "not JSON": ("{", r"line 2 is not JSON: .* at character 2"),
    "two objects": ('{"messages": []} {}', "line 2 is not JSON: Extra data"),
    "a byte order mark": ("\ufeff{}", "line 2 is not JSON"),
    "a long number": (f'{{"a": {"9" * 5000}}}', "line 2 is not JSON of texts and lists"),
    "nested deeply": ("[" * 100_000, "line 2 is not JSON"),
    "a list": ([GOOD], "line 2 is a list, not a conversation"),
    "a text": ('"messages"', "line 2 is a text, not a conversation"),
    "nothing": ("null", "line 2 is nothing, not a conversation"),
    "no messages": ({"text": "x"}, "line 2 has no 'messages'"),
    "messages of no list": ({"messages": {}}, "line 2 has an object for 'messages'"),
    "no message": ({"messages": []}, "line 2 has an empty list for 'messages'"),
    "no conversation": ({"conversations": 3}, "line 2 has a number for 'conversations'"),
    "a message of text": (of("x"), r"line 2: messages\[0\] is a text, not a message"),
    "no role": (of({"content": "x"}), r"line 2: messages\[0\] has no 'role'"),
    "an empty role": (of({"role": "", "content": "x"}), r"messages\[0\] has no 'role'"),
    "a role of a list": (of({"role": ["user"], "content": "x"}), "has no 'role'"),
    "a long role": (of({"role": "u" * 65, "content": "x"}), "has no 'role'"),
    "no content": (of(user("x"), {"role": "user"}), r"messages\[1\] has nothing for a text"),
    "content of a number": (of(user(3)), "has a number for a text"),
    "content of a truth": (of(user(True)), "has true or false for a text"),
    "no parts": (of(user([])), "has an empty list for a text"),
    "a picture": (of(user([PICTURE])), "has a part of type 'image_url' that is no text.*take"),
    "a text and a picture": (
        of(user([{"type": "text", "text": "x"}, PICTURE])),
        "has a part of type 'image_url'",
    ),
    "a part of no text": (of(user([{"type": "text", "text": 1}])), "a part of type 'text' that"),
    "a part that is bare": (of(user(["x"])), "has a part that is no text"),
    "calls of tools": (
        of({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}),
        r"messages\[0\] has 'tool_calls', which is not part of its text",
    ),
    "thoughts": (of(user("x", reasoning_content="hm")), "has 'reasoning_content'"),
    "tools": (of(user("x"), tools=[{}]), "line 2 has 'tools' beside its messages"),
    "a prompt beside": (of(user("x"), system="Be"), "has 'system' beside its messages"),
    "half a character": (of(user("\ud83d")), r"has half a character in it \(\\ud83d\)"),
    "half a character in a part": (
        of(user([{"type": "text", "text": "\udc00"}])),
        "has half a character",
    ),
    "half a character in a role": (of({"role": "\ud83d", "content": "x"}), "half a character"),
    "nobody's role": (
        {"conversations": [{"from": "function_call", "value": "x"}]},
        r"line 2: conversations\[0\] is from 'function_call'.*known are human",
    ),
    "no value": ({"conversations": [{"from": "human"}]}, "has nothing for a text"),
    "no sender": ({"conversations": [{"value": "x"}]}, "has no 'from'"),
    "a message that is none": ({"conversations": [1]}, "is a number, not a message"),
}


@pytest.mark.parametrize(("line", "words"), REFUSED.values(), ids=REFUSED)
def test_any_other_line_is_refused_in_one_line_with_its_number(line: Any, words: str) -> None:
    with pytest.raises(FormatError, match=words) as caught:
        list(read_conversations(lines(GOOD, line)))
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("line 2")


@pytest.mark.parametrize("text", ["", "\n\n", "  \n"])
def test_a_file_without_a_conversation_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match=r"no conversation.*messages"):
        list(read_conversations(text))


def test_lines_messages_and_files_have_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    text = lines(of(user("x" * 100)))
    for bound, words in (
        ("MOST_LINE_CHARACTERS", r"line 1 has \d+ characters, more than"),
        ("MOST_MESSAGES", "line 1 has more than 1 messages"),
        ("MOST_CONVERSATIONS", "the file has more than 1 conversations.*head -n 1"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(chat, bound, 1 if bound != "MOST_LINE_CHARACTERS" else len(text) - 2)
            with pytest.raises(FormatError, match=words):
                list(read_conversations(lines(GOOD, GOOD) if "LINE" not in bound else text))
            patch.setattr(chat, bound, 2 if bound != "MOST_LINE_CHARACTERS" else len(text) - 1)
            assert list(read_conversations(lines(GOOD, GOOD) if "LINE" not in bound else text))
