"""From a job to things that exist here: model files with digests, and texts cut into chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kldcloud.corpus.chunks import ChunkShape, Tokens, cut_chunks
from kldcloud.errors import FormatError, UserError
from kldcloud.models.cache import cache_dir
from kldcloud.models.digests import model_sha256
from kldcloud.models.gguf_header import GgufHeader, read_gguf_header
from kldcloud.models.llama_engine import tokenize
from kldcloud.models.quantize import quantized
from kldcloud.models.sources import fetch, read_text
from kldcloud.pipeline.progress import Progress
from kldcloud.spec.job import CandidateSpec, CorpusSpec, SweepJob
from kldcloud.spec.uri import SourceUri
from kldcloud.staging.kld_file import KldHeader, read_kld_header, read_kld_tokens
from kldcloud.staging.stage import tokens_bytes
from kldcloud.store.digest import sha256_bytes

KLD_CORPUS = "from-base-file"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A GGUF on this machine.

    Attributes:
        name: what reports and keys call it.
        file: the file name that people know it by.
    """

    name: str
    file: str
    path: Path
    sha256: str
    header: GgufHeader


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
        chunks: int32 [chunks, n_ctx].
    """

    name: str
    text_sha256: str
    text_tokens: int
    chunks: Tokens

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
    base: ModelFile | KldBase
    candidates: tuple[ModelFile, ...]
    corpora: tuple[ChunkedCorpus, ...]

    @property
    def vocabulary(self) -> int:
        if isinstance(self.base, KldBase):
            return self.base.header.n_vocab
        return self.base.header.vocabulary_size


@dataclass(frozen=True, slots=True)
class _Found:
    """A file that a job names, looked at and not worked on yet."""

    name: str
    file: str
    path: Path
    header: GgufHeader | KldHeader

    @property
    def vocabulary(self) -> int:
        if isinstance(self.header, KldHeader):
            return self.header.n_vocab
        return self.header.vocabulary_size


def prepare(job: SweepJob, progress: Progress) -> PreparedSweep:
    """Fetch and check all that the job names; only then hash, convert and quantise.

    Raises:
        UserError: for what the job names and is not there, or not what it should be.
        EngineError: if llama.cpp refuses a file.
    """
    source = _find_base(job, progress)
    found = tuple(_find_candidate(spec, progress) for spec in job.candidates)
    _check_vocabularies(source, [each for each in found if each is not None])
    base, corpora = _make_base(job, source, progress)
    candidates = tuple(
        _make_candidate(base, each, spec, progress)
        for each, spec in zip(found, job.candidates, strict=True)
    )
    return PreparedSweep(job, base, candidates, corpora)


def prepare_base(
    job: SweepJob, progress: Progress
) -> tuple[ModelFile | KldBase, tuple[ChunkedCorpus, ...]]:
    """The base and its corpora alone: enough to plan, and no candidate is made for it."""
    return _make_base(job, _find_base(job, progress), progress)


def _find_base(job: SweepJob, progress: Progress) -> _Found:
    spec = job.base
    if spec.model is not None:
        return _find_model("base", spec.display_name, spec.model, progress)
    if spec.logits is None:
        raise FormatError("the base names neither a model nor logits")
    with _about("base"):
        path = _fetch(spec.logits, progress)
        return _Found(spec.display_name, spec.logits.filename, path, read_kld_header(path))


def _find_candidate(spec: CandidateSpec, progress: Progress) -> _Found | None:
    """The candidate's file; None for one that is to be made from the base."""
    if spec.model is None:
        return None
    name = spec.display_name
    return _find_model(f"candidate {name}", name, spec.model, progress)


def _find_model(what: str, name: str, uri: SourceUri, progress: Progress) -> _Found:
    with _about(what):
        path = _fetch(uri, progress)
        return _Found(name, uri.filename, path, read_gguf_header(path))


@contextmanager
def _about(what: str) -> Iterator[None]:
    """Say which part of the job an error is about."""
    try:
        yield
    except UserError as error:
        hint = error.hint or "correct it in the job, or with --set"
        raise type(error)(f"{what}: {error.message}", hint=hint) from error


def _make_base(
    job: SweepJob, source: _Found, progress: Progress
) -> tuple[ModelFile | KldBase, tuple[ChunkedCorpus, ...]]:
    """The base and its chunks; the texts come first, for they are refused in seconds."""
    if isinstance(source.header, KldHeader):
        with progress.bar(f"hashing {source.file}", source.header.expected_bytes) as bar:
            digest = model_sha256(source.path, bar.advance)
        kld = KldBase(source.name, source.file, source.path, digest, source.header)
        return kld, (_corpus_of_file(job, kld),)
    corpora = tuple(_corpus(source.path, spec, progress) for spec in job.corpora)
    base = _model(source.name, source.file, source.path, progress)
    if job.base.convert is not None:
        base = _quantize(base, job.base.convert, base.name, progress)
    return base, corpora


def _make_candidate(
    base: ModelFile | KldBase, found: _Found | None, spec: CandidateSpec, progress: Progress
) -> ModelFile:
    if found is not None:
        return _model(found.name, found.file, found.path, progress)
    if spec.quantize is None or isinstance(base, KldBase):
        raise FormatError(f"candidate {spec.display_name} names no model")
    return _quantize(base, spec.quantize, spec.display_name, progress)


def _quantize(source: ModelFile, quant: str, name: str, progress: Progress) -> ModelFile:
    with progress.bar(f"quantising to {quant}", len(source.header.tensors)) as bar:
        path = quantized(source.path, source.sha256, quant, progress=bar.reach)
    stem = Path(source.file).stem
    return _model(name, f"{stem}-{quant}.gguf", path, progress)


def _model(name: str, file: str, path: Path, progress: Progress) -> ModelFile:
    header = read_gguf_header(path)
    with progress.bar(f"hashing {file}", header.file_bytes) as bar:
        digest = model_sha256(path, bar.advance)
    return ModelFile(name, file, path, digest, header)


def _fetch(uri: SourceUri, progress: Progress) -> Path:
    with progress.bar(f"fetching {uri.filename}", 0) as bar:
        return fetch(uri, cache=cache_dir(), progress=bar.reach)


def _corpus(tokenizer: Path, spec: CorpusSpec, progress: Progress) -> ChunkedCorpus:
    with _about(f"corpus {spec.name}"):
        with progress.bar(f"reading {spec.name}", 0) as bar:
            text = read_text(spec.text, cache=cache_dir(), progress=bar.reach)
        digest = sha256_bytes(text.encode())
        # llama-perplexity drops one newline at the end of its -f file; so must we, to cut alike.
        tokens = tokenize(tokenizer, text.removesuffix("\n")).tokens
        chunks = cut_chunks(tokens, spec.context, spec.chunks)
    return ChunkedCorpus(spec.name, digest, len(tokens), chunks)


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
