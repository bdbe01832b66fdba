"""What a job names, found and looked at, and not worked on yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kldcloud.errors import FormatError, UserError
from kldcloud.models.folder_digest import tokenizer_sha256
from kldcloud.models.gguf_header import GgufHeader
from kldcloud.models.language_model import read_language_model
from kldcloud.models.model_folder import ModelFolder, read_model_folder
from kldcloud.models.tokenizer import open_tokenizer
from kldcloud.models.trained_context import learned_positions
from kldcloud.models.transformers_load import outlined
from kldcloud.models.transformers_recipes import check_recipe, quantised_share
from kldcloud.pipeline.imatrices import FoundImatrix, find_imatrix
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.sources import FETCHED_ANYWHERE, Sources
from kldcloud.spec.job import CandidateSpec, SweepJob
from kldcloud.spec.recipes import RECIPES
from kldcloud.spec.uri import SourceUri
from kldcloud.staging.kld_file import KldHeader, read_kld_header

_MOST_OF_IT: Final = 0.9


@dataclass(frozen=True, slots=True)
class Found:
    """A file or folder that a job names.

    Attributes:
        name: what reports call it.
        file: the name that people know it by.
        header: what it says of itself.
        origin: the URI that any machine can fetch it from; empty if there is none.
    """

    name: str
    file: str
    path: Path
    header: GgufHeader | KldHeader | ModelFolder
    origin: str = ""

    @property
    def vocabulary(self) -> int:
        """Tokens, V."""
        if isinstance(self.header, KldHeader):
            return self.header.n_vocab
        return self.header.vocabulary_size

    @property
    def tokenizer(self) -> str:
        """What two models with the same one have in common; empty where nothing says so.

        Of a GGUF, the tokens alone: a text is cut by the base, and its numbers have to mean the
        same to the others.
        """
        if isinstance(self.header, ModelFolder):
            return tokenizer_sha256(self.path)
        return self.header.tokens_sha256 if isinstance(self.header, GgufHeader) else ""


def is_here(uri: SourceUri | None) -> bool:
    """Whether only this machine has what a job names, so that it can be looked at at once."""
    return uri is not None and uri.scheme not in FETCHED_ANYWHERE


def find_base(job: SweepJob, progress: Progress, sources: Sources) -> Found:
    """The base's file or folder, or the base file that stands for it.

    Raises:
        UserError: it is not there, or not what it should be.
    """
    spec = job.base
    if spec.model is not None:
        return _find_model("base", spec.display_name, spec.model, progress, sources)
    if spec.logits is None:
        raise FormatError("the base names neither a model nor logits")
    with about("base"):
        path = sources.fetch(spec.logits, progress)
        return Found(spec.display_name, spec.logits.filename, path, read_kld_header(path))


def find_candidate(spec: CandidateSpec, progress: Progress, sources: Sources) -> Found | None:
    """The candidate's file or folder; None for one that is to be made from the base.

    Raises:
        UserError: it is not there, or not what it should be.
    """
    if spec.model is None:
        return None
    name = spec.display_name
    return _find_model(f"candidate {name}", name, spec.model, progress, sources)


def _find_model(
    what: str, name: str, uri: SourceUri, progress: Progress, sources: Sources
) -> Found:
    with about(what):
        path = sources.fetch_model(uri, progress)
        return Found(name, uri.filename, path, model_header(path), sources.origin(uri, path))


def model_header(path: Path) -> ModelFolder | GgufHeader:
    """What a folder of safetensors or a GGUF says of itself.

    Raises:
        KldcloudError: it is no language model; see `read_model_folder` and `read_language_model`.
    """
    return read_model_folder(path) if path.is_dir() else read_language_model(path)


def imatrix_of(
    base: Found, spec: CandidateSpec, progress: Progress, sources: Sources
) -> FoundImatrix:
    """The importance matrix that a candidate is to be quantised with, or the text for it.

    Raises:
        UserError: it is not there, or not of the base.
    """
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


def check_recipes(job: SweepJob, base: Found, device: str, progress: Progress) -> None:
    """See that a base's layers have widths that recipes take, before it is staged.

    Args:
        job: what is measured.
        base: of which recipes make candidates, if it is a folder.
        device: that they run on, cpu or cuda.
        progress: for a warning where a recipe leaves much as it is.

    Raises:
        UserError: one has not.
    """
    specs = [each for each in job.candidates if each.quantize in RECIPES]
    if not specs or not isinstance(base.header, ModelFolder):
        return
    model = outlined(base.header).model
    share = quantised_share(model)
    for spec in specs:
        with about(f"candidate {spec.display_name}"):
            check_recipe(base.path, model, str(spec.quantize), device)
        if share < _MOST_OF_IT:
            progress.warn(
                f"candidate {spec.display_name}: recipes quantise linear layers, here "
                f"{100 * share:.0f} % of the weights between embedding and head; experts and what "
                "else lies in tensors of another kind stay as they are"
            )


def may_cut_otherwise(base: Found, other: Found) -> bool:
    """Whether two models' tokenizers have to be compared by what they make of the texts."""
    return not base.tokenizer or base.tokenizer != other.tokenizer


def check_vocabularies(base: Found, candidates: Sequence[Found]) -> None:
    """See that all have as many tokens as the base.

    Raises:
        FormatError: one has not.
    """
    for candidate in candidates:
        if candidate.vocabulary != base.vocabulary:
            raise FormatError(
                f"candidate {candidate.name} ({candidate.path}) has a vocabulary of "
                f"{candidate.vocabulary:,}, the base {base.vocabulary:,}",
                hint="only models with the base's tokenizer can be compared with it",
            )


def warn_of_beginnings(base: Found, candidates: Sequence[Found], progress: Progress) -> None:
    """Tell of candidates whose chunks llama.cpp begins otherwise than the base's.

    Each model's own file says whether a chunk begins with BOS, as for llama-perplexity.
    """
    if not isinstance(base.header, GgufHeader):
        return
    for candidate in candidates:
        if not isinstance(candidate.header, GgufHeader) or _same_rule(
            base.header, candidate.header
        ):
            continue
        one, other = _beginning(base), _beginning(candidate)
        if one != other:
            progress.warn(
                f"candidate {candidate.name}: a chunk begins with {other}, by its file's "
                f"tokenizer.ggml.add_bos_token, and the base's with {one}: its figures tell of "
                "that as well"
            )


def _same_rule(one: GgufHeader, other: GgufHeader) -> bool:
    keys = [f"tokenizer.ggml.{name}" for name in ("model", "pre", "add_bos_token", "bos_token_id")]
    return all(one.metadata.get(key) == other.metadata.get(key) for key in keys)


def _beginning(model: Found) -> str:
    """What a chunk of a GGUF's begins with, in words."""
    with open_tokenizer(model.path) as tokenizer:
        if not tokenizer.vocabulary.add_bos:
            return "its own first token"
        return f"BOS ({tokenizer.vocabulary.bos} {tokenizer.bos!r})"


def check_architectures(models: Sequence[Found]) -> None:
    """See that transformers has what each folder names, before hours go into the others.

    Raises:
        EngineError: it has not, or refuses a config.json.
        FormatError: a config.json is of another model than the weights beside it.
    """
    for model in models:
        if isinstance(model.header, ModelFolder):
            outlined(model.header)


def check_positions(contexts: Mapping[str, int], models: Sequence[Found]) -> None:
    """See that models with a table of positions have one for every token of a chunk.

    Args:
        contexts: tokens a chunk, by corpus.
        models: that read them.

    Raises:
        UserError: one has not; llama.cpp would end its process.
    """
    for model in models:
        if isinstance(model.header, KldHeader):
            continue
        most = learned_positions(model.header)
        for corpus, context in contexts.items():
            if most is not None and most < context:
                raise UserError(
                    f"corpus {corpus} has chunks of {context:,} tokens, and "
                    f"{model.name} ({model.path}) a table of {most:,} positions",
                    hint=f"set its context to {most} or less",
                )
