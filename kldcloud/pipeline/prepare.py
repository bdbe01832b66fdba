"""From a job to things that exist here: model files with digests, and texts cut into chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from kldcloud.corpus.chat import read_conversations
from kldcloud.corpus.chunks import ChunkShape, Tokens, cut_chunks
from kldcloud.corpus.order import chunk_order
from kldcloud.divergence.checkpoints import checkpoints
from kldcloud.errors import FormatError, UserError
from kldcloud.models.digests import model_sha256
from kldcloud.models.folder_digest import tokenizer_sha256
from kldcloud.models.gguf_header import GgufHeader, read_gguf_header
from kldcloud.models.model_folder import ModelFolder, read_model_folder
from kldcloud.models.tokenizer import open_tokenizer
from kldcloud.pipeline.corpus_tokens import (
    check_chat_template,
    check_same_tokens,
    corpus_tokens,
)
from kldcloud.pipeline.imatrices import (
    FoundImatrix,
    find_imatrix,
    made_imatrix,
    warn_of_flattery,
)
from kldcloud.pipeline.model_files import (
    FolderModel,
    Model,
    ModelFile,
    folder_model,
    model_file,
    quantize_model,
    with_recipe,
)
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.sources import FETCHED_ANYWHERE, Sources
from kldcloud.spec.engine import EngineOptions
from kldcloud.spec.job import NOISE_FLOOR, CandidateSpec, CorpusSpec, SweepJob
from kldcloud.spec.recipes import RECIPES
from kldcloud.spec.stop import StopSpec
from kldcloud.spec.uri import SourceUri
from kldcloud.staging.kld_file import KldHeader, read_kld_header, read_kld_tokens
from kldcloud.staging.stage import tokens_bytes
from kldcloud.store.digest import sha256_bytes

KLD_CORPUS = "from-base-file"
HERE = Sources()
"""Every name in a job means what it means on this machine."""


@dataclass(frozen=True, slots=True)
class KldBase:
    """A llama.cpp base file that stands for a base model."""

    name: str
    file: str
    path: Path
    sha256: str
    header: KldHeader


@dataclass(frozen=True, slots=True)
class ChunkedCorpus:
    """A text as the base's tokenizer sees it, cut into chunks.

    Attributes:
        text_sha256: of the text's UTF-8 bytes; of the base file, where the tokens came from one.
        text_tokens: tokens in the whole text, before it was cut.
        chunks: int32 [chunks, n_ctx]; in the order of `corpus.order` where a run may stop.
        checkpoints: numbers of first chunks after which the run may stop; none for a run that
            measures all of them in the text's order.
        format: what the job calls the text's.
    """

    name: str
    text_sha256: str
    text_tokens: int
    chunks: Tokens
    checkpoints: tuple[int, ...] = ()
    format: Literal["text", "chat"] = "text"

    @property
    def context(self) -> int:
        return int(self.chunks.shape[1])

    @property
    def count(self) -> int:
        return int(self.chunks.shape[0])

    @property
    def shape(self) -> ChunkShape:
        return ChunkShape(self.context)

    @property
    def scored(self) -> int:
        """Scored positions in all."""
        return self.count * self.shape.rows

    @property
    def tokens_sha256(self) -> str:
        return sha256_bytes(tokens_bytes(self.chunks))


@dataclass(frozen=True, slots=True)
class PreparedSweep:
    """Everything that a sweep measures, found and checked."""

    job: SweepJob
    base: Model | KldBase
    candidates: tuple[Model, ...]
    corpora: tuple[ChunkedCorpus, ...]

    @property
    def measured(self) -> tuple[Model, ...]:
        """What is measured against the base stage: candidates, then perhaps the base itself."""
        if not self.job.noise_floor or isinstance(self.base, KldBase):
            return self.candidates
        return (*self.candidates, replace(self.base, name=NOISE_FLOOR))

    @property
    def vocabulary(self) -> int:
        if isinstance(self.base, KldBase):
            return self.base.header.n_vocab
        return self.base.vocabulary

    @property
    def has_folders(self) -> bool:
        """Whether transformers runs any of it."""
        return any(isinstance(each, FolderModel) for each in (self.base, *self.candidates))

    @property
    def tokenizer(self) -> Path:
        """A model with the vocabulary that all share."""
        return self.candidates[0].path if isinstance(self.base, KldBase) else self.base.path


@dataclass(frozen=True, slots=True)
class _Found:
    """A file that a job names, looked at and not worked on yet."""

    name: str
    file: str
    path: Path
    header: GgufHeader | KldHeader | ModelFolder
    origin: str = ""

    @property
    def vocabulary(self) -> int:
        if isinstance(self.header, KldHeader):
            return self.header.n_vocab
        return self.header.vocabulary_size

    @property
    def tokenizer(self) -> str:
        """What two models with the same one have in common; empty where nothing says so."""
        return tokenizer_sha256(self.path) if isinstance(self.header, ModelFolder) else ""


def prepare(
    job: SweepJob,
    progress: Progress,
    sources: Sources = HERE,
    engine: EngineOptions | None = None,
) -> PreparedSweep:
    """Fetch and check all that the job names; only then hash, convert and quantise.

    Args:
        job: what is measured.
        progress: for the person at the terminal.
        sources: where this process finds what the job names.
        engine: how importance matrices are computed; None for the job's own options.

    Raises:
        UserError: for what the job names and is not there, or not what it should be.
        EngineError: if llama.cpp refuses a file.
    """
    source = _find_base(job, progress, sources)
    found = tuple(_find_candidate(spec, progress, sources) for spec in job.candidates)
    _check_vocabularies(source, [each for each in found if each is not None])
    imatrices = {
        spec.display_name: _find_imatrix(source, spec, progress, sources)
        for spec in job.candidates
        if spec.imatrix is not None
    }
    check_quants(job, folder=isinstance(source.header, ModelFolder))
    base, corpora = _make_base(job, source, found, progress, sources)
    warn_of_flattery(imatrices, {each.text_sha256: each.name for each in corpora}, progress)
    engine = engine or job.engine
    candidates = tuple(
        _make_candidate(base, each, spec, imatrices.get(spec.display_name), engine, progress)
        for each, spec in zip(found, job.candidates, strict=True)
    )
    return PreparedSweep(job, base, candidates, corpora)


def check_models(job: SweepJob, progress: Progress) -> None:
    """Look at the headers of all models that are here or can be fetched at once.

    Raises:
        UserError: as `prepare`.
    """
    local = [each for each in job.candidates if _is_here(each.model)]
    found = [_find_candidate(each, progress, HERE) for each in local]
    if job.base.model is not None and job.base.model.is_repository:
        check_quants(job, folder=True)
    if _is_here(job.base.model or job.base.logits):
        base = _find_base(job, progress, HERE)
        check_quants(job, folder=isinstance(base.header, ModelFolder))
        _check_vocabularies(base, [each for each in found if each is not None])
        for spec in job.candidates:
            if spec.imatrix is not None and _is_here(spec.imatrix.file):
                _find_imatrix(base, spec, progress, HERE)


def check_conversations(job: SweepJob, progress: Progress) -> None:
    """Read all conversations that are here, and see that a base that is here has a template.

    Raises:
        UserError: as `prepare`, but for what only rendering them can tell.
    """
    chats = [each for each in job.corpora if each.format == "chat"]
    if chats and _is_here(job.base.model):
        base = _find_base(job, progress, HERE)
        with about("base"):
            check_chat_template(base.path)
    for spec in chats:
        if _is_here(spec.text):
            with about(f"corpus {spec.name}"):
                for _ in read_conversations(HERE.read_text(spec.text, progress)):
                    pass


def _is_here(uri: SourceUri | None) -> bool:
    return uri is not None and uri.scheme not in FETCHED_ANYWHERE


def prepare_base(
    job: SweepJob, progress: Progress
) -> tuple[Model | KldBase, tuple[ChunkedCorpus, ...]]:
    """The base and its corpora alone: enough to plan, and no candidate is made for it."""
    return _make_base(job, _find_base(job, progress, HERE), (), progress, HERE)


def _find_base(job: SweepJob, progress: Progress, sources: Sources) -> _Found:
    spec = job.base
    if spec.model is not None:
        return _find_model("base", spec.display_name, spec.model, progress, sources)
    if spec.logits is None:
        raise FormatError("the base names neither a model nor logits")
    with about("base"):
        path = sources.fetch(spec.logits, progress)
        return _Found(spec.display_name, spec.logits.filename, path, read_kld_header(path))


def _find_candidate(spec: CandidateSpec, progress: Progress, sources: Sources) -> _Found | None:
    """The candidate's file; None for one that is to be made from the base."""
    if spec.model is None:
        return None
    name = spec.display_name
    return _find_model(f"candidate {name}", name, spec.model, progress, sources)


def _find_model(
    what: str, name: str, uri: SourceUri, progress: Progress, sources: Sources
) -> _Found:
    with about(what):
        path = sources.fetch_model(uri, progress)
        header = read_model_folder(path) if path.is_dir() else read_gguf_header(path)
        return _Found(name, uri.filename, path, header, sources.origin(uri, path))


def _find_imatrix(
    base: _Found, spec: CandidateSpec, progress: Progress, sources: Sources
) -> FoundImatrix:
    with about(f"candidate {spec.display_name}"):
        if spec.imatrix is None or not isinstance(base.header, GgufHeader):
            raise FormatError("there is no GGUF that an importance matrix is of")
        return find_imatrix(spec.imatrix, base.path, base.header, progress, sources)


@contextmanager
def about(what: str) -> Iterator[None]:
    """Say which part of the job an error of the block is about.

    Raises:
        UserError: of the kind that was raised; its hint, or to correct the job.
    """
    try:
        yield
    except UserError as error:
        hint = error.hint or "correct it in the job, or with --set"
        raise type(error)(f"{what}: {error.message}", hint=hint) from error


def _make_base(
    job: SweepJob,
    source: _Found,
    candidates: Sequence[_Found | None],
    progress: Progress,
    sources: Sources,
) -> tuple[Model | KldBase, tuple[ChunkedCorpus, ...]]:
    """The base and its chunks; the texts come first, for they are refused in seconds."""
    if isinstance(source.header, KldHeader):
        with progress.bar(f"hashing {source.file}", source.header.expected_bytes) as bar:
            digest = model_sha256(source.path, bar.advance)
        kld = KldBase(source.name, source.file, source.path, digest, source.header)
        return kld, (_corpus_of_file(job, kld),)
    others = [each for each in candidates if each is not None and _may_cut_otherwise(source, each)]
    corpora = tuple(
        _corpus(source, others, spec, job.stop, progress, sources) for spec in job.corpora
    )
    base = _as_model(source, progress)
    if job.base.convert is not None and isinstance(base, ModelFile):
        base = quantize_model(base, job.base.convert, base.name, progress)
    return base, corpora


def _as_model(found: _Found, progress: Progress) -> Model:
    make = folder_model if isinstance(found.header, ModelFolder) else model_file
    return make(found.name, found.file, found.path, progress, found.origin)


def _make_candidate(
    base: Model | KldBase,
    found: _Found | None,
    spec: CandidateSpec,
    imatrix: FoundImatrix | None,
    engine: EngineOptions,
    progress: Progress,
) -> Model:
    if found is not None:
        return _as_model(found, progress)
    if spec.quantize is None or isinstance(base, KldBase):
        raise FormatError(f"candidate {spec.display_name} names no model")
    if isinstance(base, FolderModel):
        return with_recipe(base, spec.quantize, spec.display_name)
    made = None
    if imatrix is not None:
        made = made_imatrix(imatrix, base.path, base.sha256, engine, progress)
    return quantize_model(base, spec.quantize, spec.display_name, progress, made)


def check_quants(job: SweepJob, *, folder: bool) -> None:
    """See that what is made of the base is what can be made of it.

    Args:
        job: what is measured.
        folder: whether the base is a folder of safetensors.

    Raises:
        UserError: a type is for bases of the other kind.
    """
    if folder and job.base.convert is not None:
        raise UserError(
            "base: convert is for GGUF files",
            hint="leave it out, and say engine.transformers.dtype",
        )
    for spec in job.candidates:
        if spec.quantize is None or (spec.quantize in RECIPES) is folder:
            continue
        if folder:
            raise UserError(
                f"candidate {spec.display_name}: llama.cpp quantises GGUF files, and the base is a "
                "folder of safetensors",
                hint=f"take one of {', '.join(RECIPES)}, or give a GGUF as 'model'",
            )
        raise UserError(
            f"candidate {spec.display_name}: {spec.quantize} is for a base in safetensors, and the "
            "base is a GGUF",
            hint="take a type of llama.cpp's, or a base in safetensors",
        )


def _may_cut_otherwise(base: _Found, other: _Found) -> bool:
    """Whether two models' tokenizers have to be compared by what they make of the texts.

    Of two GGUF files only the vocabularies' sizes are compared: one is commonly made of the other.
    """
    if isinstance(base.header, GgufHeader) and isinstance(other.header, GgufHeader):
        return False
    return not base.tokenizer or base.tokenizer != other.tokenizer


def _corpus(
    base: _Found,
    others: Sequence[_Found],
    spec: CorpusSpec,
    stop: StopSpec | None,
    progress: Progress,
    sources: Sources,
) -> ChunkedCorpus:
    with about(f"corpus {spec.name}"):
        text = sources.read_text(spec.text, progress)
        digest = sha256_bytes(text.encode())
        with open_tokenizer(base.path) as tokenizer:
            tokens = corpus_tokens(tokenizer, spec, text, progress)
            template = tokenizer.chat_template() if others and spec.format == "chat" else ""
        chunks = cut_chunks(tokens, spec.context, spec.chunks)
        for other in others:
            with open_tokenizer(other.path) as tokenizer:
                found = corpus_tokens(tokenizer, spec, text, progress, template)
                check_same_tokens(tokens, found, other.name, tokenizer)
    corpus = ChunkedCorpus(spec.name, digest, len(tokens), chunks, format=spec.format)
    return corpus if stop is None else _in_order(corpus, stop)


def _in_order(corpus: ChunkedCorpus, stop: StopSpec) -> ChunkedCorpus:
    """The chunks in the order in which a run that may stop measures them."""
    order = chunk_order(corpus.tokens_sha256, corpus.count)
    steps = checkpoints(stop.least, corpus.count)
    return replace(corpus, chunks=np.ascontiguousarray(corpus.chunks[order]), checkpoints=steps)


def _corpus_of_file(job: SweepJob, base: KldBase) -> ChunkedCorpus:
    tokens = read_kld_tokens(base.path, base.header)
    name = KLD_CORPUS
    if job.corpora:
        spec = job.corpora[0]
        name = spec.name
        if spec.chunks != "all":
            tokens = tokens[: spec.chunks]
    return ChunkedCorpus(name, base.sha256, base.header.n_chunks * base.header.n_ctx, tokens)


def _check_vocabularies(base: _Found, candidates: Sequence[_Found]) -> None:
    for candidate in candidates:
        if candidate.vocabulary != base.vocabulary:
            raise FormatError(
                f"candidate {candidate.name} ({candidate.path}) has a vocabulary of "
                f"{candidate.vocabulary:,}, the base {base.vocabulary:,}",
                hint="only models with the base's tokenizer can be compared with it",
            )
