"""The base of a plan: read where it is at hand, else as the job states it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from kldcloud.errors import FormatError, UserError
from kldcloud.estimate.files import PlannedBase, PlannedModel, at_hand, model_here
from kldcloud.models.ggml_types import BITS
from kldcloud.models.gguf_header import GgufHeader
from kldcloud.models.language_model import read_language_model
from kldcloud.models.model_folder import ModelFolder, read_model_folder
from kldcloud.models.trained_context import trained_context
from kldcloud.models.transformers_head import TYPE_NAMES
from kldcloud.models.transformers_options import TransformersOptions, resolved_dtype
from kldcloud.pipeline.model_files import FolderModel, KldBase, Model
from kldcloud.spec.engine import EngineOptions
from kldcloud.spec.job import BaseSpec, Expected, SweepJob
from kldcloud.spec.uri import SourceUri
from kldcloud.staging.choose import BaseShape
from kldcloud.staging.folder_head import MODELS_OWN_LOGITS, shape_of_folder
from kldcloud.staging.head import head_tensor
from kldcloud.staging.kld_file import read_kld_header
from kldcloud.staging.states import BLOCK, SUPPORTED_HEADS

_NO_WIDTH: Final = "its width is unknown (base.expect.width)"
_QUANT_IN_NAME: Final = re.compile(r"(?<![A-Z0-9])(?:I?Q|TQ|MXFP|NVFP)[1-9]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How models would be run, as far as a plan knows.

    Attributes:
        engine: the job's options, with the cluster's in their place.
        gpu: whether there is one.
    """

    engine: EngineOptions
    gpu: bool

    def of_folder(self, stored: str) -> TransformersOptions:
        """How transformers would run a model stored in a dtype; nothing is asked of torch."""
        said = self.engine.transformers
        device = ("cuda" if self.gpu else "cpu") if said.device == "auto" else said.device
        dtype = resolved_dtype(said.dtype, stored, device)
        return TransformersOptions(dtype, device, head=said.head)


def is_stated(base: BaseSpec) -> bool:
    """Whether the job says all of a base that a plan needs."""
    given = base.expect
    return None not in (given.bytes, given.vocabulary, given.width)


def prepared_base(job: SweepJob, base: Model | KldBase, how: Evaluation) -> PlannedBase:
    """A base that has been fetched, and converted if the job says so."""
    source = job.base.model or job.base.logits
    if isinstance(base, KldBase):
        file = PlannedModel(base.name, source, base.header.expected_bytes, here=True)
        return PlannedBase(file, base.header.n_vocab, None, None, kld=True)
    most = base.trained_context
    file = PlannedModel(base.name, source, base.bytes, here=True, trained_context=most)
    if isinstance(base, FolderModel):
        return _base_of_folder(file, base.folder, how)
    return _base_of(file, base.header, base.path)


def planned_base(spec: BaseSpec, how: Evaluation) -> PlannedBase:
    """A base from its header where the file is here, else from what the job states of it."""
    uri = spec.model or spec.logits
    if uri is None:
        raise FormatError("the base names neither a model nor logits")
    found = _base_here(spec, uri, how)
    if found is not None:
        return found
    given = spec.expect
    if uri.scheme == "file" and given == Expected():
        raise UserError(
            f"base: {uri.path} does not exist",
            hint="correct it in the job, or state its expect: {bytes: ..., vocabulary: ..., "
            "width: ...}",
        )
    file = PlannedModel(spec.display_name, uri, given.bytes, here=False)
    if spec.logits is not None or given.vocabulary is None:
        return PlannedBase(file, given.vocabulary, None, None, kld=spec.logits is not None)
    if uri.is_repository:
        return _stated_repository(file, given, given.vocabulary, how)
    head = spec.convert or _head_by_name(uri.stem)
    obstacle = None if head else f"a {uri.stem} has a quantised head, by its name"
    if obstacle is None and given.width is None:
        obstacle = _NO_WIDTH
    if obstacle is None and head == "Q8_0" and (given.width or 0) % BLOCK:
        obstacle = f"its width is no multiple of {BLOCK}"
    if obstacle is None:
        shape = BaseShape(given.vocabulary, head, given.width or 0, None)
    else:
        shape = BaseShape(given.vocabulary, "", 0, obstacle)
    weights = int(given.bytes * 8 / BITS[head]) if given.bytes and head else None
    return PlannedBase(file, given.vocabulary, shape, weights, kld=False)


def _stated_repository(
    file: PlannedModel, given: Expected, vocabulary: int, how: Evaluation
) -> PlannedBase:
    """A base in safetensors that is not here: its weights are taken for bfloat16, as most are."""
    options = how.of_folder("bfloat16")
    weights = given.bytes * 8 // int(BITS["BF16"]) if given.bytes else None
    if options.head != "float32":
        obstacle = MODELS_OWN_LOGITS
    elif given.width is None:
        obstacle = _NO_WIDTH
    else:
        head, on_gpu = TYPE_NAMES[options.dtype], options.device != "cpu"
        shape = BaseShape(vocabulary, head, given.width, None, on_gpu=on_gpu)
        return PlannedBase(file, vocabulary, shape, weights, kld=False)
    return PlannedBase(file, vocabulary, BaseShape(vocabulary, "", 0, obstacle), weights, kld=False)


def _base_here(spec: BaseSpec, uri: SourceUri, how: Evaluation) -> PlannedBase | None:
    """A base that is on this machine."""
    path = at_hand(uri) if spec.logits is not None else model_here(uri)
    if path is None:
        return None
    if spec.logits is not None:
        kld = read_kld_header(path)
        file = PlannedModel(spec.display_name, uri, kld.expected_bytes, here=True)
        return PlannedBase(file, kld.n_vocab, None, None, kld=True, path=path)
    if path.is_dir():
        folder = read_model_folder(path)
        file = _file_here(spec, uri, folder.tensor_bytes, folder)
        return _base_of_folder(file, folder, how)
    header = read_language_model(path)
    file = _file_here(spec, uri, header.file_bytes, header)
    if spec.convert is not None:
        header = _converted(header, spec.convert)
        size = int(header.parameters * BITS[spec.convert] / 8)
        file = replace(file, size=size)
    return _base_of(file, header, path)


def _file_here(
    spec: BaseSpec, uri: SourceUri, size: int, header: GgufHeader | ModelFolder
) -> PlannedModel:
    most = trained_context(header)
    return PlannedModel(spec.display_name, uri, size, here=True, trained_context=most)


def _base_of(file: PlannedModel, header: GgufHeader, path: Path) -> PlannedBase:
    shape = BaseShape.of(header)
    return PlannedBase(file, shape.vocabulary, shape, header.parameters, kld=False, path=path)


def _base_of_folder(file: PlannedModel, folder: ModelFolder, how: Evaluation) -> PlannedBase:
    shape = shape_of_folder(folder, how.of_folder(folder.dtype or ""))
    weights = None if folder.quantization else sum(each.elements for each in folder.tensors)
    return PlannedBase(
        file, shape.vocabulary, shape, weights, kld=False, path=folder.path, folder=folder
    )


def _converted(header: GgufHeader, kind: str) -> GgufHeader:
    """The header as far as it matters here, with an output head of another type."""
    tensor = head_tensor(header)
    if tensor is None:
        return header
    tensors = {**header.tensors, tensor.name: replace(tensor, type_name=kind)}
    return replace(header, tensors=tensors)


def _head_by_name(stem: str) -> str:
    """The head's type of a file that is not here; empty for a type that cannot be staged."""
    for kind in ("BF16", "F16", "F32", "Q8_0"):
        if re.search(rf"(?<![A-Z0-9]){kind}(?![A-Z0-9_])", stem, re.IGNORECASE):
            return kind
    return "" if _QUANT_IN_NAME.search(stem) else SUPPORTED_HEADS[1]
