"""From a job to things that exist here: model files with digests, and texts cut into chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kldcloud.corpus.chat import read_conversations
from kldcloud.errors import FormatError
from kldcloud.models.digests import model_sha256
from kldcloud.models.model_folder import ModelFolder
from kldcloud.models.tokenizer import chat_template
from kldcloud.pipeline.corpora import ChunkedCorpus, chunked_corpus, corpus_of_file
from kldcloud.pipeline.found import (
    Found,
    about,
    check_architectures,
    check_positions,
    check_quants,
    check_recipes,
    check_vocabularies,
    find_base,
    find_candidate,
    imatrix_of,
    is_here,
    may_cut_otherwise,
    warn_of_beginnings,
)
from kldcloud.pipeline.imatrices import FoundImatrix, made_imatrix, warn_of_flattery
from kldcloud.pipeline.model_files import (
    FolderModel,
    KldBase,
    Model,
    ModelFile,
    folder_model,
    model_file,
    quantize_model,
    with_recipe,
)
from kldcloud.pipeline.options import torch_device
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.sources import HERE, Sources
from kldcloud.spec.engine import EngineOptions
from kldcloud.spec.job import NOISE_FLOOR, CandidateSpec, SweepJob
from kldcloud.staging.kld_file import KldHeader


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
    def has_ggufs(self) -> bool:
        """Whether llama.cpp runs any of it."""
        return any(isinstance(each, ModelFile) for each in (self.base, *self.candidates))

    @property
    def tokenizer(self) -> Path:
        """A model with the vocabulary that all share."""
        return self.candidates[0].path if isinstance(self.base, KldBase) else self.base.path


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
        engine: how models are evaluated; None for the job's own options.

    Raises:
        UserError: for what the job names and is not there, or not what it should be.
        EngineError: if llama.cpp refuses a file.
    """
    source = find_base(job, progress, sources)
    found = tuple(find_candidate(spec, progress, sources) for spec in job.candidates)
    given = [each for each in found if each is not None]
    check_vocabularies(source, given)
    check_architectures([source, *given])
    imatrices = {
        spec.display_name: imatrix_of(source, spec, progress, sources)
        for spec in job.candidates
        if spec.imatrix is not None
    }
    check_quants(job, folder=isinstance(source.header, ModelFolder))
    engine = engine or job.engine
    if isinstance(source.header, ModelFolder):
        check_recipes(job, source, torch_device(engine.transformers), progress)
    base, corpora = _make_base(job, source, found, progress, sources)
    warn_of_flattery(imatrices, {each.text_sha256: each.name for each in corpora}, progress)
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
    local = [each for each in job.candidates if is_here(each.model)]
    found = [find_candidate(each, progress, HERE) for each in local]
    if job.base.model is not None and job.base.model.is_repository:
        check_quants(job, folder=True)
    if is_here(job.base.model or job.base.logits):
        base = find_base(job, progress, HERE)
        check_quants(job, folder=isinstance(base.header, ModelFolder))
        check_vocabularies(base, [each for each in found if each is not None])
        for spec in job.candidates:
            if spec.imatrix is not None and is_here(spec.imatrix.file):
                imatrix_of(base, spec, progress, HERE)


def check_conversations(job: SweepJob, progress: Progress) -> None:
    """Read all conversations that are here, and see that a base that is here has a template.

    Raises:
        UserError: as `prepare`, but for what only rendering them can tell.
    """
    chats = [each for each in job.corpora if each.format == "chat"]
    if chats and is_here(job.base.model):
        base = find_base(job, progress, HERE)
        with about("base"):
            chat_template(base.path)
    for spec in chats:
        if is_here(spec.text):
            with about(f"corpus {spec.name}"):
                for _ in read_conversations(HERE.read_text(spec.text, progress)):
                    pass


def prepare_base(
    job: SweepJob, progress: Progress
) -> tuple[Model | KldBase, tuple[ChunkedCorpus, ...]]:
    """The base and its corpora alone: enough to plan, and no candidate is made for it."""
    return _make_base(job, find_base(job, progress, HERE), (), progress, HERE)


def _make_base(
    job: SweepJob,
    source: Found,
    candidates: Sequence[Found | None],
    progress: Progress,
    sources: Sources,
) -> tuple[Model | KldBase, tuple[ChunkedCorpus, ...]]:
    """The base and its chunks; the texts come first, for they are refused in seconds."""
    models = [each for each in (source, *candidates) if each is not None]
    if isinstance(source.header, KldHeader):
        with progress.bar(f"hashing {source.file}", source.header.expected_bytes) as bar:
            digest = model_sha256(source.path, bar.advance)
        kld = KldBase(source.name, source.file, source.path, digest, source.header)
        corpus = corpus_of_file(job, kld)
        check_positions({corpus.name: corpus.context}, models)
        return kld, (corpus,)
    check_positions({each.name: each.context for each in job.corpora}, models)
    others: dict[str, Found] = {}
    for each in candidates:
        if each is not None and may_cut_otherwise(source, each):
            others.setdefault(each.tokenizer or str(each.path), each)
    corpora = tuple(
        chunked_corpus(source, [*others.values()], spec, job.stop, progress, sources)
        for spec in job.corpora
    )
    warn_of_beginnings(source, models[1:], progress)
    base = _as_model(source, progress)
    if job.base.convert is not None and not isinstance(base, FolderModel):
        base = quantize_model(base, job.base.convert, base.name, progress)
    return base, corpora


def _as_model(found: Found, progress: Progress) -> Model:
    make = folder_model if isinstance(found.header, ModelFolder) else model_file
    return make(found.name, found.file, found.path, progress, found.origin)


def _make_candidate(
    base: Model | KldBase,
    found: Found | None,
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
