"""Where the importance matrix of a quantised file comes from: a file, or a text to make it with."""

from __future__ import annotations

from typing import Annotated, Any, Final, Self

from pydantic import Field, model_validator

from kldcloud.spec.fields import Chunks, Source, SpecModel, Whole, refused
from kldcloud.spec.uri import SourceUri

DEFAULT_CONTEXT: Final = 512
"""Tokens in a chunk: what `llama-imatrix` takes unless it is told otherwise."""
_LEAST_CONTEXT: Final = 16  # llama.cpp collects nothing from fewer rows
_MOST_CONTEXT: Final = 1 << 20


class ImatrixSpec(SpecModel):
    """An importance matrix; the path of a file alone is short for `{file: path}`.

    Attributes:
        file: one that exists already, a GGUF or an older `.dat` of llama-imatrix.
        text: a text to compute one with instead; UTF-8. Not one that is measured: that flatters.
        chunks: chunks evaluated, from the start of the text; `all` takes every whole one.
        context: tokens in a chunk.
    """

    file: Source | None = None
    text: Source | None = None
    chunks: Chunks = "all"
    context: Annotated[Whole, Field(ge=_LEAST_CONTEXT, le=_MOST_CONTEXT)] = DEFAULT_CONTEXT

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, data: Any) -> Any:  # noqa: ANN401 - pydantic hands over what was given
        return {"file": data} if isinstance(data, str | SourceUri) else data

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.file is None) == (self.text is None):
            raise refused("give the path of a file, or a 'text' to make one with")
        if self.file is not None:
            if self.file.scheme == "builtin":
                raise refused("a built-in text is no importance matrix: give it as 'text'")
            if (self.chunks, self.context) != ("all", DEFAULT_CONTEXT):
                raise refused("a file is used as it is: leave out 'chunks' and 'context'")
        return self

    @property
    def source(self) -> SourceUri:
        """The file or the text."""
        source = self.file or self.text
        assert source is not None  # noqa: S101 - it was validated
        return source
