"""A conversation as a model reads it: rendered through the chat template that its file carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from jinja2 import TemplateSyntaxError, UndefinedError

from kldcloud.errors import FormatError
from kldcloud.models.template_sandbox import ChatEnvironment, RaisedByTemplateError
from kldcloud.models.template_steps import TemplateRefusalError, TooManyStepsError

MOST_TEMPLATE: Final = 1 << 16
"""Characters of a template; the longest that llama.cpp carries has 17 thousand."""
_AS_TEXT: Final = "render the conversations yourself and give them as a text"
_LONGEST_WORDS: Final = 200
_PROBE: Final = "Is this content rendered?"


class ChatTemplate:
    """A template, compiled.

    It is given `messages`, `bos_token`, `eos_token` and a false `add_generation_prompt`, and no
    tools, as llama.cpp does it. Nor is there a clock: `strftime_now` is undefined, so a template
    falls back on the date that it carries, or fails.

    Args:
        source: jinja, as Hugging Face's tokenizers and llama.cpp have it.
        bos: text of the BOS token; empty where the vocabulary has none.
        eos: text of the EOS token; likewise.

    Raises:
        FormatError: if it is no template, is made of what no chat template is made of, or spins.
    """

    def __init__(self, source: str, *, bos: str, eos: str) -> None:
        if len(source) > MOST_TEMPLATE:
            raise FormatError(
                f"the chat template has {len(source):,} characters, more than {MOST_TEMPLATE:,}",
                hint=_AS_TEXT,
            )
        self._environment = ChatEnvironment()
        self._given = {
            "bos_token": bos,
            "eos_token": eos,
            "add_generation_prompt": False,
        }
        try:
            self._template = self._environment.from_string(source)
        except Exception as error:  # jinja and Python's compiler refuse in many ways
            raise _refusal(error) from error
        self._in_parts = _PROBE not in self._tried(_PROBE) and _PROBE in self._tried(_part(_PROBE))

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text of one conversation.

        Where a template takes a message's content only as a list of parts, it gets one.

        Args:
            messages: `role` and `content` of each, in order.

        Raises:
            FormatError: if the template does not take the conversation, fails, would cost more
                than any conversation needs, or makes no text of it.
        """
        given: list[dict[str, Any]] = [dict(each) for each in messages]
        if self._in_parts:
            given = [{**each, "content": _part(each["content"])} for each in given]
        text = self._run(given, sum(len(each["content"]) for each in messages))
        if not text:
            raise FormatError("the chat template makes no text of it", hint="take the line out")
        return text

    def _run(self, messages: list[dict[str, Any]], characters: int) -> str:
        self._environment.steps.allow(len(messages), characters)
        try:
            text = self._template.render(messages=messages, **self._given)
            text.encode()
        except Exception as error:  # a template can raise anything
            raise _refusal(error) from error
        return text

    def _tried(self, content: str | list[dict[str, str]]) -> str:
        try:
            return self._run([{"role": "user", "content": content}], len(_PROBE))
        except FormatError as error:
            if isinstance(error.__cause__, TooManyStepsError):
                raise  # and would again, for each conversation
            return ""


def _part(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _refusal(error: Exception) -> FormatError:
    """One line about a template that fails: it is a stranger's, and so are its words."""
    words = " ".join(str(error).split())[:_LONGEST_WORDS]
    hint = _AS_TEXT
    match error:
        case TooManyStepsError():
            what = str(error)
            hint = f"shorten the conversation, or {_AS_TEXT}"
        case TemplateRefusalError():
            what = str(error)
        case RaisedByTemplateError():
            what = f"refuses it: {words}"
            hint = "change or take out the line"
        case TemplateSyntaxError():
            what = f"is no template: {words} (its line {error.lineno})"
        case UndefinedError() if "strftime_now" in words:
            what = "wants to know today's date, and numbers must be the same tomorrow"
        case RecursionError() | MemoryError():
            what = "nests too deeply, or is too large"
        case UnicodeEncodeError():
            what = "makes half a character (a surrogate)"
        case _:
            what = f"fails: {type(error).__name__}: {words}"
    return FormatError(f"the chat template {what}", hint=hint)
