"""From a corpus and its text to tokens: one way for sweeps and for plans.

The tokens decide: neither the format of a corpus nor its text is part of a stage's key or a run's
id beside them, so the same tokens are the same stage, whatever they were made from.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np

from kldcloud.corpus.chat import read_conversations
from kldcloud.corpus.chunks import Tokens
from kldcloud.errors import FormatError
from kldcloud.models.gguf_header import read_gguf_header
from kldcloud.models.llama_tokenizer import open_tokenizer, tokenize
from kldcloud.pipeline.progress import Progress
from kldcloud.spec.job import CorpusSpec

TEMPLATE_KEY: Final = "tokenizer.chat_template"


def corpus_tokens(model: Path, spec: CorpusSpec, text: str, progress: Progress) -> Tokens:
    """The tokens of a whole corpus, before it is cut.

    Args:
        model: the base's GGUF: its tokenizer, and its chat template where one is needed.
        spec: says what the text is.
        text: the content of the file that the corpus names.
        progress: told of conversations as they are rendered.

    Returns:
        int32 [n]; conversations follow one another, each as llama.cpp's server reads it.

    Raises:
        UserError: for a text that is not of the corpus's format or that the template does not take.
        EngineError: if llama.cpp refuses the model or the text.
    """
    if spec.format == "chat":
        return _chat_tokens(model, spec.name, text, progress)
    # llama-perplexity drops one newline at the end of its -f file; so must we, to cut alike.
    return tokenize(model, text.removesuffix("\n")).tokens


def chat_template_source(model: Path) -> str:
    """The chat template in a GGUF's metadata.

    Raises:
        FormatError: if it has none.
    """
    template = read_gguf_header(model).metadata.get(TEMPLATE_KEY)
    if not isinstance(template, str) or not template.strip():
        raise FormatError(
            f"{model} has no chat template ({TEMPLATE_KEY}) to render conversations with",
            hint="take an instruction-tuned base that has one, or render the conversations "
            "yourself and give them as a text",
        )
    return template


def _chat_tokens(model: Path, name: str, text: str, progress: Progress) -> Tokens:
    # jinja is not needed to start, nor for a job without conversations.
    from kldcloud.models.chat_template import ChatTemplate

    source = chat_template_source(model)
    parts: list[Tokens] = []
    with (
        open_tokenizer(model) as tokenizer,
        progress.bar(f"rendering {name}", text.count("\n")) as bar,
    ):
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
