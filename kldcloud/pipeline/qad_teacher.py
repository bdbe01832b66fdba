"""The teacher of a distillation on this machine: a GGUF that was given, or one made of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from kldcloud.errors import UserError
from kldcloud.models.folder_files import TOKENIZER_FILES
from kldcloud.models.gguf_header import GgufHeader, read_gguf_header
from kldcloud.models.model_folder import read_model_folder
from kldcloud.pipeline.found import about
from kldcloud.pipeline.long_contexts import warn_of_long_contexts
from kldcloud.pipeline.model_files import ModelFile, folder_model, model_file, quantize_model
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.sources import Sources
from kldcloud.qad.architectures import map_model
from kldcloud.spec.qad_job import QadJob

COMPARED_BYTES: Final = 16 << 20
"""Of each text: some five million tokens, which take half a minute. A text may have a thousand
times as many, and the rest of it would say nothing new of how a tokenizer splits."""
_REAL: Final = frozenset({"F32", "F16", "BF16"})


def find_teacher(job: QadJob, progress: Progress, sources: Sources) -> ModelFile:
    """The teacher on this machine, at F16 if its file is quantised itself.

    A folder of safetensors becomes a GGUF in its own dtype, compared with the folder on the
    beginning of the job's texts; other machines get that file.

    Raises:
        UserError: it is not there, or not what it should be.
    """
    spec = job.teacher
    with about("teacher"):
        path = sources.fetch_model(spec.model, progress)
    if path.is_dir():
        found = _of_folder(job, path, progress, sources)
    else:
        with about("teacher"):
            look_at_teacher(path)
            origin = sources.origin(spec.model, path)
            found = model_file(spec.display_name, spec.model.filename, path, progress, origin)
    context = {"data.text": job.data.context}
    warn_of_long_contexts(context, {found.name: found.trained_context}, progress)
    convert = spec.convert or ("F16" if _is_quantised(found.header) else None)
    return found if convert is None else quantize_model(found, convert, found.name, progress)


def tokenizer_files(job: QadJob, progress: Progress, sources: Sources) -> tuple[Path, ...]:
    """Those of a teacher in safetensors on this machine; a GGUF has none."""
    path = sources.fetch_model(job.teacher.model, progress)
    if not path.is_dir():
        return ()
    return tuple(path / name for name in read_model_folder(path).files if name in TOKENIZER_FILES)


def look_at_teacher(path: Path) -> GgufHeader | None:
    """Refuse what cannot be a teacher, without reading weights.

    Returns:
        A GGUF's header; None for a folder of safetensors.

    Raises:
        UserError: it is neither.
    """
    if not path.is_dir():
        # A quantised teacher is converted before it is loaded.
        map_model(path, any_type=True)
        return read_gguf_header(path)
    from kldcloud.qad.from_folder.look import look_at_folder

    look_at_folder(path)
    return None


def _of_folder(job: QadJob, path: Path, progress: Progress, sources: Sources) -> ModelFile:
    from kldcloud.qad.from_folder.convert import folder_gguf

    spec, second = job.teacher, job.eval.second_text
    with about("teacher"):
        look_at_teacher(path)
    with about("data.text"):
        texts = {"data.text": _beginning(sources.text_file(job.data.text, progress))}
    if second is not None:
        with about("eval.second_text"):
            texts["eval.second_text"] = _beginning(sources.text_file(second, progress))
    with about("teacher"):
        folder = folder_model(spec.display_name, spec.model.filename, path, progress)
        with progress.bar(f"converting {folder.file}", folder.bytes) as bar:
            made = folder_gguf(path, folder.sha256, texts, note=progress.note, progress=bar.reach)
        return model_file(spec.display_name, f"{folder.file}.gguf", made, progress)


def _beginning(path: Path) -> str:
    """As much of a text as tokenizers are compared on; one that is no UTF-8 is refused later."""
    try:
        with path.open("rb") as file:
            return file.read(COMPARED_BYTES).decode(errors="ignore")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def _is_quantised(header: GgufHeader) -> bool:
    return any(each.type_name not in _REAL for each in header.tensors.values())
