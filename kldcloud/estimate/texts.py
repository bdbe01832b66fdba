"""The texts of a plan: counted where a tokenizer is at hand, else as the job states them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

from kldcloud.corpus.chunks import check_length
from kldcloud.errors import UserError
from kldcloud.estimate.files import PlannedBase, PlannedCorpus, at_hand
from kldcloud.models.tokenizer import open_tokenizer
from kldcloud.pipeline.corpora import KLD_CORPUS, ChunkedCorpus
from kldcloud.pipeline.corpus_tokens import corpus_tokens
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.sources import HERE
from kldcloud.spec.job import CorpusSpec, SweepJob
from kldcloud.staging.kld_file import read_kld_header

BYTES_A_TOKEN: Final = 4
"""Of English text, where nothing can count: WikiText-2 has 4.3 with a vocabulary of 248K."""


def prepared_corpora(
    job: SweepJob, corpora: tuple[ChunkedCorpus, ...]
) -> tuple[PlannedCorpus, ...]:
    """Texts that have been tokenised and cut."""
    texts = {spec.name: spec.text for spec in job.corpora}
    return tuple(
        PlannedCorpus(c.name, c.text_tokens, "counted", c.count, c.context, uri=texts.get(c.name))
        for c in corpora
    )


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
    check_length(tokens, spec.context, f"{what}: the text")
    chunks = tokens // spec.context
    if spec.chunks != "all":
        chunks = min(chunks, spec.chunks)
    size = spec.expect.bytes if text is None else len(text.encode())
    return PlannedCorpus(spec.name, tokens, source, chunks, spec.context, size, spec.text)


def _can_count(model: Path) -> bool:
    """Whether the library that has its tokenizer is installed."""
    library = "transformers" if model.is_dir() else "llama_cpp"
    return importlib.util.find_spec(library) is not None
