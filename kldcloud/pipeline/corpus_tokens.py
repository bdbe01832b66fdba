"""From a corpus and its text to tokens: one way for sweeps and for plans.

The tokens decide: neither the format of a corpus nor its text is part of a stage's key or a run's
id beside them, so the same tokens are the same stage, whatever they were made from.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from kldcloud.corpus.chat import read_conversations
from kldcloud.corpus.chunks import Tokens
from kldcloud.errors import FormatError
from kldcloud.models.tokenizer import Tokenizer, first_difference
from kldcloud.pipeline.progress import Progress
from kldcloud.spec.job import CorpusSpec


def corpus_tokens(
    tokenizer: Tokenizer, spec: CorpusSpec, text: str, progress: Progress, template: str = ""
) -> Tokens:
    """The tokens of a whole corpus, before it is cut.

    Args:
        tokenizer: of a model that is measured on it.
        spec: says what the text is.
        text: the content of the file that the corpus names.
        progress: told of conversations as they are rendered.
        template: the base's chat template, which renders conversations for all; where it is
            empty, the tokenizer's own.

    Returns:
        int32 [n]; conversations follow one another, each as llama.cpp's server reads it.

    Raises:
        UserError: for a text that is not of the corpus's format or that the template does not take.
        EngineError: if the tokenizer refuses the text.
    """
    if spec.format == "chat":
        return _chat_tokens(tokenizer, template or tokenizer.chat_template(), spec, text, progress)
    # llama-perplexity drops one newline at the end of its -f file; so must we, to cut alike.
    return tokenizer.text(text.removesuffix("\n"))


def check_same_tokens(base: Tokens, other: Tokens, name: str, tokenizer: Tokenizer) -> None:
    """See that two models cut a text into the same tokens.

    Args:
        base: int32 [n], the base's.
        other: int32 [m], the other model's.
        name: of the other model.
        tokenizer: of the other model, for the words of the error.

    Raises:
        FormatError: they do not; the first token that differs is named.
    """
    found = first_difference(base, other, tokenizer)
    if found is None:
        return
    raise FormatError(
        f"candidate {name} cuts the text differently: token {found.at:,} is {found.one} for the "
        f"base and {found.other} for {name}",
        hint="only models with the base's tokenizer can be compared with it",
    )


def _chat_tokens(
    tokenizer: Tokenizer, source: str, spec: CorpusSpec, text: str, progress: Progress
) -> Tokens:
    # jinja is not needed to start, nor for a job without conversations.
    from kldcloud.models.chat_template import ChatTemplate

    parts: list[Tokens] = []
    with progress.bar(f"rendering {spec.name}", text.count("\n")) as bar:
        template = ChatTemplate(source, bos=tokenizer.bos, eos=tokenizer.eos)
        at = 0
        for conversation in read_conversations(text):
            try:
                rendered = template.render([asdict(each) for each in conversation.messages])
            except FormatError as error:
                message = f"line {conversation.line}: {error.message}"
                raise FormatError(message, hint=error.hint) from error
            parts.append(tokenizer.prompt(rendered))
            bar.advance(conversation.line - at)
            at = conversation.line
    return np.concatenate(parts)
