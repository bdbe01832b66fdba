"""What a distillation job is made of, found or made on this machine: models, and texts in parts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from kldcloud.corpus.chunks import Tokens, cut_chunks
from kldcloud.errors import UserError
from kldcloud.models.cache import cache_folder
from kldcloud.models.engine import Vocabulary
from kldcloud.models.gguf_header import read_gguf_header
from kldcloud.models.imatrix import importance_matrix
from kldcloud.models.imatrix_file import check_fit, read_imatrix
from kldcloud.models.llama_tokenizer import LlamaTokenizer, open_llama_tokenizer
from kldcloud.models.store_copy import upload_once
from kldcloud.pipeline.found import about, is_here
from kldcloud.pipeline.model_files import ModelFile, model_file, quantize_model
from kldcloud.pipeline.nvfp4_model import nvfp4_model
from kldcloud.pipeline.options import llama_options
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.qad_teacher import look_at_teacher
from kldcloud.pipeline.sources import HERE, Sources
from kldcloud.qad.whole_file import whole_file, written
from kldcloud.spec.qad_job import InitSpec, QadJob
from kldcloud.spec.quants import TAKES_NO_IMPORTANCE_MATRIX
from kldcloud.spec.uri import SourceUri
from kldcloud.store.base import Store
from kldcloud.store.digest import sha256_bytes

IMATRIX_CHUNKS: Final = 200
"""At most so many training chunks make an importance matrix; people use 100 to 200."""


@dataclass(frozen=True, slots=True)
class QadFiles:
    """The models of a job.

    Attributes:
        teacher: at full precision.
        baselines: what quantising alone comes to: round to nearest, then with an importance matrix.
        init: what the student starts from; one of the baselines, or a file that was given.
    """

    teacher: ModelFile
    baselines: tuple[ModelFile, ...]
    init: ModelFile


@dataclass(frozen=True, slots=True)
class QadTexts:
    """The text of a job, in three parts that do not overlap.

    Attributes:
        training: int32 [n, context], what is trained on.
        looks: int32 [m, context], what is looked at while training; it chooses the best checkpoint.
        proof: the rest, which nothing has seen: what the result is measured on.
    """

    training: Tokens
    looks: Tokens
    proof: str


def qad_texts(job: QadJob, teacher: Path, progress: Progress, sources: Sources) -> QadTexts:
    """Cut the job's text, at ends of lines.

    Raises:
        UserError: the text is too short for its parts.
    """
    data = job.data
    with about("data.text"):
        text = sources.read_text(data.text, progress).removesuffix("\n")
    if job.eval.second_text is not None:
        # Read again for the sweep; what is not there is said now, not after hours of training.
        with about("eval.second_text"):
            sources.read_text(job.eval.second_text, progress)
    split = _line_end(text, round(len(text) * (1 - data.heldout)))
    with open_llama_tokenizer(teacher) as tokenizer:
        return _parts(job, tokenizer, text, split)


def _parts(job: QadJob, tokenizer: LlamaTokenizer, text: str, split: int) -> QadTexts:
    """The parts of a text whose last one, from `split` on, is held out."""
    data, vocabulary = job.data, tokenizer.vocabulary
    train, held = tokenizer.text(text[:split]), tokenizer.text(text[split:])
    wanted = job.eval.chunks
    if wanted == "all":
        wanted = len(held) // data.context // 2 - 1
    # Looks take a part of the held-out text, and leave at least as much of it unseen.
    share = (wanted + 1) * data.context / max(len(held), 1)
    if share > 1 / 2:
        raise UserError(
            f"data.text: its held-out part has {len(held):,} tokens, too few for"
            f" {wanted} chunks of {data.context} to look at and as many to be measured on",
            hint="give a longer text, a larger data.heldout, or fewer eval.chunks",
        )
    middle = split + _line_end(text[split:], round((len(text) - split) * share))
    looks = cut_chunks(tokenizer.text(text[split:middle]), data.context, wanted)
    limit: int | Literal["all"] = "all"
    if data.tokens != "all":
        limit = max(data.tokens // data.context, 1)
    training = cut_chunks(train, data.context, limit)
    return QadTexts(_bos_first(training, vocabulary), _bos_first(looks, vocabulary), text[middle:])


def _bos_first(chunks: Tokens, vocabulary: Vocabulary) -> Tokens:
    """Chunks as the engine evaluates them: where the vocabulary adds BOS, each begins with it."""
    if vocabulary.add_bos:
        chunks = chunks.copy()
        chunks[:, 0] = vocabulary.bos
    return chunks


def _line_end(text: str, at: int) -> int:
    """The first place after a line's end from `at` on; the text's end if there is none."""
    found = text.find("\n", at)
    return len(text) if found < 0 else found + 1


def qad_files(
    job: QadJob, teacher: ModelFile, training: Tokens, progress: Progress, sources: Sources
) -> QadFiles:
    """Make or find what the teacher is compared with.

    Args:
        job: what is wanted.
        teacher: from `qad_teacher.find_teacher`.
        training: int32 [n, context], what an importance matrix is computed from.
        progress: for bars.
        sources: where the job's files are.
    """
    init = job.student.init
    if init is None:
        rounded = nvfp4_model(teacher, progress)
        return QadFiles(teacher, (rounded,), rounded)
    if init.model is not None:
        with about("student.init"):
            path = sources.fetch(init.model, progress)
            origin = sources.origin(init.model, path)
            given = model_file("init", init.model.filename, path, progress, origin)
        return QadFiles(teacher, (), given)
    assert init.quantize is not None  # noqa: S101 - the job has one of the two
    plain = quantize_model(teacher, init.quantize, init.quantize, progress)
    if init.quantize in TAKES_NO_IMPORTANCE_MATRIX:
        return QadFiles(teacher, (plain,), plain)
    matrix = _imatrix(job, init, teacher, training, progress, sources)
    name = f"{init.quantize}-imat"
    weighed = quantize_model(teacher, init.quantize, name, progress, matrix)
    chosen = plain if init.imatrix == "none" else weighed
    return QadFiles(teacher, (plain, weighed), chosen)


def given_files(job: QadJob) -> list[SourceUri]:
    """The files that a job names, texts aside."""
    init = job.student.init
    named = [job.teacher.model, *([init.model, init.imatrix] if init else [])]
    return [uri for uri in named if isinstance(uri, SourceUri)]


def check_given(job: QadJob, progress: Progress) -> None:
    """Look at the files that are here, so that what is none is refused before anything is rented.

    Raises:
        UserError: for what is not there, or not what it should be.
    """
    init, teacher = job.student.init, None
    if is_here(job.teacher.model):
        with about("teacher"):
            teacher = look_at_teacher(HERE.fetch_model(job.teacher.model, progress))
    if init is None:
        return
    if init.model is not None and is_here(init.model):
        read_gguf_header(HERE.fetch(init.model, progress))
    if isinstance(init.imatrix, SourceUri) and is_here(init.imatrix):
        path = HERE.fetch(init.imatrix, progress)
        if teacher is not None:
            check_fit(read_imatrix(path), teacher, str(path))


def ship_models(files: QadFiles, store: Store, progress: Progress) -> None:
    """Put into the store which of them other machines cannot fetch: files that were made here."""
    for model in (files.teacher, files.init):
        if not model.origin:
            with progress.bar(f"uploading {model.file}", model.header.file_bytes) as bar:
                upload_once(store, model.path, model.sha256, bar.reach)


def source_of(model: ModelFile, given: SourceUri | None) -> str:
    """What a sweep finds a model by: the job's own word for it, unless it was made here."""
    if given is not None and model.file == given.filename:
        return str(given)
    return str(model.path)


def _imatrix(
    job: QadJob,
    init: InitSpec,
    teacher: ModelFile,
    training: Tokens,
    progress: Progress,
    sources: Sources,
) -> Path:
    wanted = init.imatrix
    if isinstance(wanted, SourceUri):
        with about("student.init.imatrix"):
            path = sources.fetch(wanted, progress)
            check_fit(read_imatrix(path), teacher.header, str(path))
        return path
    chunks = training[:IMATRIX_CHUNKS]
    options = llama_options(job.engine, job.engine.threads or os.cpu_count() or 1)
    with progress.bar("importance matrix", len(chunks)) as bar:
        return importance_matrix(
            teacher.path,
            teacher.sha256,
            chunks,
            options,
            dataset=job.data.text.filename,
            progress=bar.reach,
        )


def text_file(text: str) -> Path:
    """A text as a file of this machine's cache, by its digest."""
    data = text.encode()
    path = cache_folder("texts", "texts") / f"{sha256_bytes(data)[:32]}.txt"
    if not path.exists():
        with whole_file(path) as part, written(path):
            part.write_bytes(data)
    return path


def tokens_digest(*parts: Tokens) -> str:
    """SHA-256 of chunks, one part after the other, with their shapes."""
    shapes = repr([each.shape for each in parts]).encode()
    return sha256_bytes(b"".join([shapes, *(np.asarray(p, "<i4").tobytes() for p in parts)]))
