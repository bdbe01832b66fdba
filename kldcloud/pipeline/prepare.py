"""From a job to things that exist here: model files with digests, and texts cut into chunks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kldcloud.corpus.chunks import ChunkShape, Tokens, cut_chunks
from kldcloud.errors import FormatError
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


def prepare(job: SweepJob, progress: Progress) -> PreparedSweep:
    """Fetch, convert, quantise, tokenise.

    Raises:
        UserError: for what the job names and is not there, or not what it should be.
        EngineError: if llama.cpp refuses a file.
    """
    base, corpora = prepare_base(job, progress)
    candidates = tuple(_candidate(base, spec, progress) for spec in job.candidates)
    prepared = PreparedSweep(job, base, candidates, corpora)
    _check_vocabularies(prepared)
    return prepared


def prepare_base(
    job: SweepJob, progress: Progress
) -> tuple[ModelFile | KldBase, tuple[ChunkedCorpus, ...]]:
    """The base and its corpora alone: enough to plan, and no candidate is made for it."""
    base = _base(job, progress)
    if isinstance(base, KldBase):
        return base, (_corpus_of_file(job, base),)
    return base, tuple(_corpus(base, spec, progress) for spec in job.corpora)


def _base(job: SweepJob, progress: Progress) -> ModelFile | KldBase:
    spec = job.base
    if spec.logits is not None:
        path = _fetch(spec.logits, progress)
        header = read_kld_header(path)
        digest = model_sha256(path)
        return KldBase(spec.display_name, _filename(spec.logits), path, digest, header)
    if spec.model is None:
        raise FormatError("the base names neither a model nor logits")
    path = _fetch(spec.model, progress)
    source = _model(spec.display_name, _filename(spec.model), path, progress)
    if spec.convert is None:
        return source
    return _quantize(source, spec.convert, spec.display_name, progress)


def _candidate(base: ModelFile | KldBase, spec: CandidateSpec, progress: Progress) -> ModelFile:
    if spec.model is not None:
        path = _fetch(spec.model, progress)
        return _model(spec.display_name, _filename(spec.model), path, progress)
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
    with progress.bar(f"fetching {_filename(uri)}", 0) as bar:
        return fetch(uri, cache=cache_dir(), progress=bar.reach)


def _filename(uri: SourceUri) -> str:
    return PurePosixPath(uri.path).name


def _corpus(base: ModelFile, spec: CorpusSpec, progress: Progress) -> ChunkedCorpus:
    with progress.bar(f"reading {spec.name}", 0) as bar:
        text = read_text(spec.text, cache=cache_dir(), progress=bar.reach)
    digest = sha256_bytes(text.encode())
    # llama-perplexity drops one newline at the end of its -f file; so must we, to cut alike.
    tokens = tokenize(base.path, text.removesuffix("\n")).tokens
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


def _check_vocabularies(prepared: PreparedSweep) -> None:
    expected = prepared.vocabulary
    for candidate in prepared.candidates:
        found = candidate.header.vocabulary_size
        if found != expected:
            raise FormatError(
                f"candidate {candidate.name} ({candidate.path}) has a vocabulary of {found:,}, "
                f"the base {expected:,}",
                hint="only models with the base's tokenizer can be compared with it",
            )
