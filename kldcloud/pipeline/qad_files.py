"""The models of a distillation job, found or made on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kldcloud.corpus.chunks import Tokens
from kldcloud.models.imatrix import importance_matrix
from kldcloud.models.imatrix_file import check_fit, read_imatrix
from kldcloud.models.store_copy import upload_once
from kldcloud.pipeline.found import about, is_here
from kldcloud.pipeline.model_files import ModelFile, model_file, quantize_model
from kldcloud.pipeline.nvfp4_model import nvfp4_model
from kldcloud.pipeline.options import llama_options
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.qad_init import check_same_tokens, look_at_init
from kldcloud.pipeline.qad_teacher import look_at_teacher
from kldcloud.pipeline.sources import HERE, Sources
from kldcloud.spec.qad_job import QadJob
from kldcloud.spec.qad_models import InitSpec
from kldcloud.spec.quants import TAKES_NO_IMPORTANCE_MATRIX
from kldcloud.spec.uri import SourceUri
from kldcloud.store.base import Store

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
            look_at_init(path, teacher.path)
            check_same_tokens(path, teacher.path, sources.text_file(job.data.text, progress))
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
    init, teacher, path = job.student.init, None, None
    if is_here(job.teacher.model):
        with about("teacher"):
            path = HERE.fetch_model(job.teacher.model, progress)
            teacher = look_at_teacher(path)
    if init is None:
        return
    if init.model is not None and is_here(init.model):
        with about("student.init"):
            given = HERE.fetch(init.model, progress)
            look_at_init(given, None if teacher is None else path)
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
