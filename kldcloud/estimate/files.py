"""What a plan knows of a job's files: read where they are at hand, else as the job states it."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from kldcloud.corpus.chunks import ChunkShape
from kldcloud.errors import FormatError, UserError
from kldcloud.models.ggml_types import GGML_TYPES
from kldcloud.models.gguf_header import GgufHeader, read_gguf_header
from kldcloud.models.model_folder import ModelFolder, read_model_folder
from kldcloud.models.sources import model_at_hand
from kldcloud.models.tokenizer import open_tokenizer
from kldcloud.models.transformers_options import TransformersOptions, resolved_dtype
from kldcloud.pipeline.corpus_tokens import corpus_tokens
from kldcloud.pipeline.model_files import FolderModel, Model
from kldcloud.pipeline.prepare import HERE, KLD_CORPUS, ChunkedCorpus, KldBase
from kldcloud.pipeline.progress import Progress
from kldcloud.spec.engine import EngineOptions
from kldcloud.spec.job import BaseSpec, CandidateSpec, CorpusSpec, Expected, SweepJob
from kldcloud.spec.recipes import RECIPES
from kldcloud.spec.uri import SourceUri
from kldcloud.staging.choose import BaseShape
from kldcloud.staging.folder_head import shape_of_folder
from kldcloud.staging.head import head_tensor
from kldcloud.staging.kld_file import read_kld_header
from kldcloud.staging.states import BLOCK, SUPPORTED_HEADS

BYTES_A_TOKEN: Final = 4
"""Of English text, where nothing can count: WikiText-2 has 4.3 with a vocabulary of 248K."""
MIXTURE: Final = 1.12
"""Size of a K- or I-quant mixture over its namesake type alone: Q4_K_M is 5.08 bits, Q4_K 4.5."""

_BITS: Final = {
    kind.name: 8 * kind.block_bytes / kind.block_elements for kind in GGML_TYPES.values()
}
_QUANT_IN_NAME: Final = re.compile(r"(?<![A-Z0-9])(?:I?Q|TQ|MXFP|NVFP)[1-9]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A file of the job.

    Attributes:
        name: what reports call the model.
        uri: where it comes from; None for one that is quantised from the base.
        size: bytes, or None if nothing says.
        here: whether it is on this machine.
    """

    name: str
    uri: SourceUri | None
    size: int | None
    here: bool


@dataclass(frozen=True, slots=True)
class PlannedBase:
    """The base.

    Attributes:
        file: the model's or .kld file.
        vocabulary: V, or None if nothing says.
        shape: what the choice of an encoding needs, or None.
        weights: how many, or None.
        kld: whether it is a llama.cpp base file.
        path: of a file on this machine that can count a text's tokens.
    """

    file: PlannedModel
    vocabulary: int | None
    shape: BaseShape | None
    weights: int | None
    kld: bool
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class PlannedCorpus:
    """A text.

    Attributes:
        tokens: in the whole text.
        source: how they are known: counted, stated, or estimated from the text's size.
        chunks: that will be evaluated.
        context: tokens of one.
        size: bytes of the text, or None.
        uri: where it comes from; None for the tokens of a .kld file.
    """

    name: str
    tokens: int
    source: str
    chunks: int
    context: int
    size: int | None = None
    uri: SourceUri | None = None

    @property
    def rows(self) -> int:
        """Scored positions."""
        return self.chunks * ChunkShape(self.context).rows


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How models would be run, as far as a plan knows.

    Attributes:
        engine: the job's options, with the cluster's in their place.
        gpu: whether there is one.
    """

    engine: EngineOptions
    gpu: bool

    def of_folder(self, folder: ModelFolder) -> TransformersOptions:
        """How transformers would run it; nothing is asked of torch."""
        said = self.engine.transformers
        device = ("cuda" if self.gpu else "cpu") if said.device == "auto" else said.device
        dtype = resolved_dtype(said.dtype, folder.dtype or "", device)
        return TransformersOptions(dtype, device, head=said.head)


def has_folders(job: SweepJob) -> bool:
    """Whether transformers would run any of a job's models, as far as can be seen from here."""
    named = (job.base.model, *(each.model for each in job.candidates))
    return any(uri is not None and _is_folder(uri) for uri in named)


def _is_folder(uri: SourceUri) -> bool:
    path = None if uri.is_repository else model_at_hand(uri)
    return uri.is_repository or (path is not None and path.is_dir())


def at_hand(uri: SourceUri) -> Path | None:
    """The path of what a URI names, if it is on this machine; nothing is downloaded."""
    if uri.scheme == "file":
        path = Path(uri.path).expanduser()
        return path if path.is_file() else None
    if uri.scheme == "package":
        from kldcloud.models.sources import fetch

        try:
            return fetch(uri, cache=Path())
        except UserError:
            return None
    if uri.scheme == "hf" and uri.path and importlib.util.find_spec("huggingface_hub"):
        import huggingface_hub

        found = huggingface_hub.try_to_load_from_cache(
            uri.container, uri.path, revision=uri.revision
        )
        return Path(found) if isinstance(found, str) else None
    return None


def model_here(uri: SourceUri) -> Path | None:
    """The path of a model file or folder, if it is on this machine; nothing is downloaded."""
    return at_hand(uri) or model_at_hand(uri)


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
    file = PlannedModel(base.name, source, base.bytes, here=True)
    if isinstance(base, FolderModel):
        return _base_of_folder(file, base.folder, how)
    return _base_of(file, base.header, base.path)


def prepared_corpora(
    job: SweepJob, corpora: tuple[ChunkedCorpus, ...]
) -> tuple[PlannedCorpus, ...]:
    """Texts that have been tokenised and cut."""
    texts = {spec.name: spec.text for spec in job.corpora}
    return tuple(
        PlannedCorpus(c.name, c.text_tokens, "counted", c.count, c.context, uri=texts.get(c.name))
        for c in corpora
    )


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
    head = spec.convert or _head_by_name(uri.stem)
    obstacle = None if head else f"a {uri.stem} has a quantised head, by its name"
    if obstacle is None and given.width is None:
        obstacle = "its width is unknown (base.expect.width)"
    if obstacle is None and head == "Q8_0" and (given.width or 0) % BLOCK:
        obstacle = f"its width is no multiple of {BLOCK}"
    if obstacle is None:
        shape = BaseShape(given.vocabulary, head, given.width or 0, None)
    else:
        shape = BaseShape(given.vocabulary, "", 0, obstacle)
    weights = int(given.bytes * 8 / _BITS[head]) if given.bytes and head else None
    return PlannedBase(file, given.vocabulary, shape, weights, kld=False)


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
        file = PlannedModel(spec.display_name, uri, folder.tensor_bytes, here=True)
        return _base_of_folder(file, folder, how)
    header = read_gguf_header(path)
    file = PlannedModel(spec.display_name, uri, header.file_bytes, here=True)
    if spec.convert is not None:
        header = _converted(header, spec.convert)
        size = int(header.parameters * _BITS[spec.convert] / 8)
        file = replace(file, size=size)
    return _base_of(file, header, path)


def planned_corpora(
    job: SweepJob, base: PlannedBase, progress: Progress
) -> tuple[PlannedCorpus, ...]:
    """The texts: counted where the base's tokenizer is here, else stated, else guessed by size.

    Raises:
        UserError: if a text can be neither read nor is stated, or is too short.
    """
    if base.kld and base.path is not None:
        return (_corpus_of_kld(job, base.path),)
    if not job.corpora:
        raise UserError(
            f"base: {base.file.uri} is not on this machine, so its tokens are unknown",
            hint="give its corpus with expect: {tokens: ...}, or a copy of the file",
        )
    return tuple(_corpus(f"corpus {spec.name}", spec, base, progress) for spec in job.corpora)


def planned_candidates(job: SweepJob, base: PlannedBase) -> tuple[PlannedModel, ...]:
    """The candidates; those that are here must be models of the base's vocabulary.

    Raises:
        UserError: for a path where nothing is and of which the job states nothing.
    """
    return tuple(_candidate(spec, base) for spec in job.candidates)


def planned_imatrices(
    job: SweepJob, base: PlannedBase, progress: Progress
) -> tuple[PlannedCorpus, ...]:
    """The texts that importance matrices are computed from, each once, named by a candidate.

    Raises:
        UserError: for a path where nothing is; as `planned_corpora` for a text that must be read.
    """
    found = {}
    for each in job.candidates:
        spec, name = each.imatrix, each.display_name
        if spec is None or spec in found:
            continue
        source = spec.source
        path = at_hand(source)
        if source.scheme == "file" and path is None:
            raise UserError(f"imatrix of {name}: {source.path} does not exist")
        if spec.text is None:
            continue
        if spec.chunks == "all":
            text = CorpusSpec(name=name, text=spec.text, context=spec.context)
            found[spec] = _corpus(f"imatrix of {name}", text, base, progress)
        else:
            tokens, size = spec.chunks * spec.context, path.stat().st_size if path else None
            found[spec] = PlannedCorpus(
                name, tokens, "stated", spec.chunks, spec.context, size, spec.text
            )
    return tuple(found.values())


def _base_of(file: PlannedModel, header: GgufHeader, path: Path) -> PlannedBase:
    shape = BaseShape.of(header)
    return PlannedBase(file, shape.vocabulary, shape, header.parameters, kld=False, path=path)


def _base_of_folder(file: PlannedModel, folder: ModelFolder, how: Evaluation) -> PlannedBase:
    shape = shape_of_folder(folder, how.of_folder(folder))
    weights = None if folder.quantization else sum(each.elements for each in folder.tensors)
    return PlannedBase(file, shape.vocabulary, shape, weights, kld=False, path=folder.path)


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


def _corpus_of_kld(job: SweepJob, path: Path) -> PlannedCorpus:
    header = read_kld_header(path)
    name, chunks = KLD_CORPUS, header.n_chunks
    if job.corpora:
        name = job.corpora[0].name
        if job.corpora[0].chunks != "all":
            chunks = min(chunks, job.corpora[0].chunks)
    tokens = header.n_chunks * header.n_ctx
    return PlannedCorpus(name, tokens, "counted", chunks, header.n_ctx)


def _corpus(what: str, spec: CorpusSpec, base: PlannedBase, progress: Progress) -> PlannedCorpus:
    """One text; `what` it is begins every refusal."""
    text, tokens, source = None, spec.expect.tokens, "stated"
    here = spec.text.scheme == "builtin" or at_hand(spec.text) is not None
    counts = base.path is not None and _can_count(base.path)
    try:
        if (here and counts) or tokens is None:
            text = HERE.read_text(spec.text, progress)
        if text is not None and counts and base.path is not None:
            with open_tokenizer(base.path) as tokenizer:
                tokens = len(corpus_tokens(tokenizer, spec, text, progress))
            source = "counted"
    except UserError as error:
        hint = error.hint or "or state its expect: {tokens: ...}"
        message = f"{what}: {error.message}"
        raise type(error)(message, hint=hint) from error
    if tokens is None:
        tokens, source = len((text or "").encode()) // BYTES_A_TOKEN, "estimated"
    if tokens < 2 * spec.context:
        raise UserError(
            f"{what}: the text has {tokens} tokens, fewer than two chunks of {spec.context}",
            hint=f"give a longer text, or a context of at most {tokens // 2}",
        )
    chunks = tokens // spec.context
    if spec.chunks != "all":
        chunks = min(chunks, spec.chunks)
    size = spec.expect.bytes if text is None else len(text.encode())
    return PlannedCorpus(spec.name, tokens, source, chunks, spec.context, size, spec.text)


def _can_count(model: Path) -> bool:
    """Whether the library that has its tokenizer is installed."""
    library = "transformers" if model.is_dir() else "llama_cpp"
    return importlib.util.find_spec(library) is not None


def _candidate(spec: CandidateSpec, base: PlannedBase) -> PlannedModel:
    name, size = spec.display_name, spec.expect.bytes
    if spec.model is None:
        if size is None and base.weights is not None:
            size = _quantised_size(base, base.weights, spec.quantize or "")
        return PlannedModel(name, None, size, here=False)
    path = model_here(spec.model)
    if path is None:
        if size is None and spec.model.scheme == "file":
            raise UserError(
                f"candidate {name}: {spec.model.path} does not exist",
                hint="correct it in the job, or state its expect: {bytes: ...}",
            )
        return PlannedModel(name, spec.model, size, here=False)
    header = read_model_folder(path) if path.is_dir() else read_gguf_header(path)
    if base.vocabulary is not None and header.vocabulary_size != base.vocabulary:
        raise FormatError(
            f"candidate {name} ({path}) has a vocabulary of {header.vocabulary_size:,}, "
            f"the base {base.vocabulary:,}",
            hint="only models with the base's tokenizer can be compared with it",
        )
    size = header.file_bytes if isinstance(header, GgufHeader) else header.tensor_bytes
    return PlannedModel(name, spec.model, size, here=True)


def _quantised_size(base: PlannedBase, weights: int, quant: str) -> int:
    """Bytes of the base in a type of llama.cpp's, to a tenth or so."""
    bits = _bits_of(quant)
    head = base.shape.vocabulary * base.shape.width if base.shape else 0
    # The quantiser keeps the output head at 6 bits or more, whatever the rest becomes.
    return int(((weights - head) * bits + head * max(bits, _BITS["Q6_K"])) / 8)


def _bits_of(quant: str) -> float:
    """Bits a weight of a type or a recipe, without its output head."""
    if quant in RECIPES:
        recipe = RECIPES[quant]
        return recipe.bits + (recipe.scale_bits / recipe.group if recipe.group else 0)
    namesakes = [name for name in _BITS if quant.startswith(name)]
    if namesakes:
        exact = max(namesakes, key=len)
        return _BITS[exact] * (1.0 if exact == quant else MIXTURE)
    return _BITS.get(f"{quant.rpartition('_')[0]}_S", 8.0)
