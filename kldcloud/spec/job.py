"""What a sweep job says: one base, its candidates, the texts to measure them on, and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from kldcloud.errors import SpecError
from kldcloud.spec.engine import EngineOptions
from kldcloud.spec.fields import (
    ByteCount,
    Chunks,
    ModelPlace,
    Name,
    QuantType,
    Source,
    SpecModel,
    StoreAddress,
    Switch,
    Whole,
    name_after,
    refused,
    slug,
)
from kldcloud.spec.imatrix import ImatrixSpec
from kldcloud.spec.quants import check_importance
from kldcloud.spec.stop import StopSpec

__all__ = [
    "NOISE_FLOOR",
    "BaseSpec",
    "CandidateSpec",
    "CorpusSpec",
    "EngineOptions",
    "Expected",
    "ImatrixSpec",
    "StopSpec",
    "SweepJob",
]

NOISE_FLOOR: Final = "noise-floor"
"""What the base measured against itself is called, among candidates."""
_LEAST_CONTEXT: Final = 8
_MOST_CONTEXT: Final = 1 << 20
_MOST_CANDIDATES: Final = 1024
_MOST_CORPORA: Final = 64
_MOST_SHARD_CHUNKS: Final = 1 << 20
_MOST_VOCABULARY: Final = 1 << 24
_MOST_WIDTH: Final = 1 << 20
_MOST_TOKENS: Final = 1 << 40
_MOST_RATE: Final = 1e12
_MOST_RATES: Final = 256


class Expected(SpecModel):
    """What a job states about a file that the planning machine does not have.

    Only `plan` reads it, and only where the file itself is not at hand: it changes no number.

    Attributes:
        bytes: size of the file.
        vocabulary: tokens in its vocabulary, V.
        width: of the hidden states that enter its output head, d.
        tokens: in a text, as the base's tokenizer counts them.
    """

    bytes: ByteCount | None = None
    vocabulary: Annotated[Whole, Field(ge=2, le=_MOST_VOCABULARY)] | None = None
    width: Annotated[Whole, Field(ge=1, le=_MOST_WIDTH)] | None = None
    tokens: Annotated[Whole, Field(ge=1, le=_MOST_TOKENS)] | None = None


class BaseSpec(SpecModel):
    """The reference that every candidate is measured against.

    Attributes:
        model: a GGUF file, or a folder or repository of safetensors.
        convert: the type that the model is converted to before anything is measured, which makes
            a quantised file usable as the base of `quantize` candidates.
        logits: a base file that llama.cpp's `--kl-divergence-base` wrote, instead of a model.
        name: what reports call it.
        expect: its size, vocabulary and width, for a plan without the file.
    """

    model: ModelPlace | None = None
    convert: Literal["F32", "F16", "BF16"] | None = None
    logits: Source | None = None
    name: Name | None = None
    expect: Expected = Expected()

    @model_validator(mode="after")
    def _one_reference(self) -> Self:
        if (self.model is None) == (self.logits is None):
            raise refused("give exactly one of 'model' and 'logits'")
        if self.logits is not None and self.convert is not None:
            raise refused("only a 'model' can be converted, not 'logits'", "convert")
        if self.logits is not None and self.logits.scheme in {"package", "builtin"}:
            raise refused("must be a path, file:, s3:// or hf:", "logits")
        if self.model is not None and self.model.scheme == "builtin":
            raise refused("a built-in text is not a model", "model")
        if not self.display_name:
            raise refused("no name can be made from the file's name: give one with 'name'")
        return self

    @property
    def display_name(self) -> str:
        """The given name, else the file's stem and what it is converted to, safe as a key part."""
        if self.name is not None:
            return self.name
        source = self.model or self.logits
        return name_after(source, self.convert) if source else ""


class CandidateSpec(SpecModel):
    """One model measured against the base.

    Attributes:
        quantize: the llama.cpp type that the base is quantised to.
        imatrix: the importance matrix that it is quantised with.
        model: instead, one that exists already: a GGUF file, or a folder or repository of
            safetensors.
        name: what reports and keys call it.
        expect: its size, for a plan without the file.
    """

    quantize: QuantType | None = None
    imatrix: ImatrixSpec | None = None
    model: ModelPlace | None = None
    name: Name | None = None
    expect: Expected = Expected()

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.quantize is None) == (self.model is None):
            raise refused("give exactly one of 'quantize' and 'model'")
        if self.quantize is None and self.imatrix is not None:
            raise refused("only what is quantised here takes one: leave it out", "imatrix")
        if self.quantize is not None:
            try:
                check_importance(self.quantize, given=self.imatrix is not None)
            except SpecError as error:
                raise refused(str(error), "quantize") from None
        if self.model is not None and self.model.scheme == "builtin":
            raise refused("a built-in text is not a model", "model")
        if not self.display_name:
            raise refused("no name can be made from the file's name: give one with 'name'")
        if self.display_name.casefold() == NOISE_FLOOR:
            raise refused("means the base against itself: give this candidate another 'name'")
        return self

    @property
    def display_name(self) -> str:
        """The given name, else the quantisation type, else the file's stem; safe as a key part.

        What a type is made with an importance matrix has -imat behind it.
        """
        if self.name is not None:
            return self.name
        if self.quantize is not None:
            return self.quantize if self.imatrix is None else f"{self.quantize}-imat"
        return slug(self.model.stem) if self.model else ""


class CorpusSpec(SpecModel):
    """One text, cut into chunks.

    Attributes:
        name: what reports and keys call it.
        text: where the text is; UTF-8.
        format: text, or chat: conversations in JSONL, rendered through the base's chat template.
        context: tokens in a chunk; the second half of them is scored.
        chunks: chunks measured, from the start of the text; `all` takes every whole one.
        expect: its tokens, for a plan without the text or the base's tokenizer.
    """

    name: Name
    text: Source
    format: Literal["text", "chat"] = "text"
    context: Annotated[Whole, Field(ge=_LEAST_CONTEXT, le=_MOST_CONTEXT)] = 512
    chunks: Chunks = "all"
    expect: Expected = Expected()

    @model_validator(mode="after")
    def _conversations_come_from_a_file(self) -> Self:
        if self.format == "chat" and self.text.scheme == "builtin":
            raise refused("a built-in text has no conversations in it", "format")
        return self


class SweepJob(SpecModel):
    """A job file of `kind: sweep`.

    `load.load_job` makes one from a file with its paths made absolute; built in Python, relative
    paths stay as they were given.

    Attributes:
        kind: always `sweep`.
        name: the job's name in reports.
        base: the reference.
        candidates: what is measured, in the order of the report.
        corpora: what it is measured on; empty where `base.logits` brings its own tokens.
        cluster: a name from `clusters/`, or a path: see `cluster.load_cluster`.
        store: a folder, relative to the current one, or `s3://bucket/prefix`.
        engine: how models are evaluated.
        encoding: how the base's distributions are staged; auto lets the plan choose.
        llama_compat: whether llama.cpp's own KLD is reported beside the exact one.
        noise_floor: whether the base is measured against itself too, which costs as much as a
            candidate: what a second pass of the same model comes to is no fault of any candidate.
        stop: when a text may be left before its end; None measures all of it.
        shard_chunks: chunks in a shard; None lets the plan choose.
        rates: cluster name -> tokens a second that one worker evaluates there, for plans.
    """

    kind: Literal["sweep"]
    name: Name
    base: BaseSpec
    candidates: tuple[CandidateSpec, ...] = Field(max_length=_MOST_CANDIDATES)
    corpora: tuple[CorpusSpec, ...] = Field(default=(), max_length=_MOST_CORPORA)
    cluster: Annotated[str, Field(min_length=1, max_length=4096)] = "local"
    store: StoreAddress = "./kldcloud-store"
    engine: EngineOptions = EngineOptions()
    encoding: Literal["auto", "hidden", "logits"] = "auto"
    llama_compat: Switch = True
    noise_floor: Switch = False
    stop: StopSpec | None = None
    shard_chunks: Annotated[Whole, Field(ge=1, le=_MOST_SHARD_CHUNKS)] | None = None
    rates: Mapping[str, Annotated[float, Field(gt=0, le=_MOST_RATE)]] = Field(
        default_factory=dict, max_length=_MOST_RATES
    )

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if not self.candidates:
            raise refused("needs at least one entry", "candidates")
        _refuse_same_names("candidates", [each.display_name for each in self.candidates])
        _refuse_same_names("corpora", [each.name for each in self.corpora])
        if self.base.model is None:
            self._refuse_what_needs_a_base_model()
        elif not self.corpora:
            raise refused("needs at least one entry", "corpora")
        if self.stop is not None and self.stop.when == "ranked" and len(self.candidates) == 1:
            reason = "one candidate has no rank: add another, or stop when it is 'precise'"
            raise refused(reason, "stop", "when")
        return self

    def _refuse_what_needs_a_base_model(self) -> None:
        for index, candidate in enumerate(self.candidates):
            if candidate.quantize is not None:
                reason = "there is no model to quantise: 'base' has only 'logits'"
                raise refused(reason, "candidates", index, "quantize")
        if len(self.corpora) > 1:
            raise refused("'base.logits' holds the tokens of one corpus", "corpora", 1)
        if self.noise_floor:
            raise refused("there is no model to measure again: 'base' has 'logits'", "noise_floor")
        if self.stop is not None:
            raise refused("'base.logits' has its own order of chunks: leave this out", "stop")
        for index, corpus in enumerate(self.corpora):
            if corpus.format == "chat":
                reason = "the tokens come from 'base.logits': leave it out"
                raise refused(reason, "corpora", index, "format")


def _refuse_same_names(field: str, names: list[str]) -> None:
    # Folders of a store may ignore letter case, so names that differ only in it collide too.
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        earlier = first.setdefault(name.casefold(), index)
        if earlier != index:
            reason = (
                f"has the same name '{name}' as {field}[{earlier}]; give it a 'name' of its own"
            )
            raise refused(reason, field, index)
