"""The texts of a plan: counted where a tokenizer is at hand, else as the job states them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from kldcloud.corpus.chunks import check_length
from kldcloud.errors import UserError
from kldcloud.estimate.files import PlannedBase, PlannedCorpus, at_hand, model_here
from kldcloud.models.tokenizer import open_tokenizer
from kldcloud.pipeline.corpora import KLD_CORPUS, ChunkedCorpus
from kldcloud.pipeline.corpus_tokens import check_same_tokens, corpus_tokens
from kldcloud.pipeline.found import Found, about, may_cut_otherwise, model_header
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.sources import HERE
from kldcloud.spec.job import CorpusSpec, SweepJob
from kldcloud.spec.uri import SourceUri
from kldcloud.staging.kld_file import read_kld_header

BYTES_A_TOKEN: Final = 4
"""Of English text, where nothing can count: WikiText-2 has 4.3 with a vocabulary of 248K."""
_COMPARED_CHARACTERS: Final = 1 << 18
_COMPARED_LINES: Final = 64
"""Of a text, that plans compare tokenizers by."""


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


def check_tokenizers(job: SweepJob, progress: Progress) -> None:
    """See that candidates cut the texts as the base does, as far as all of them are here.

    A launch compares whole texts; this their beginnings, which takes a second.

    Raises:
        FormatError: one cuts a text differently; the first token that differs is named.
        UserError: a text is not of its format.
    """
    base, *others = (_here("base", job.base.model), *_candidates_here(job))
    if base is None or not _can_count(base.path):
        return
    distinct: dict[str, Found] = {}
    for other in others:
        if other is not None and _can_count(other.path) and may_cut_otherwise(base, other):
            distinct.setdefault(other.tokenizer or str(other.path), other)
    for spec in job.corpora if distinct else ():
        if spec.text.scheme == "builtin" or at_hand(spec.text) is not None:
            with about(f"corpus {spec.name}"):
                _check_beginning(base, list(distinct.values()), spec, progress)


def _candidates_here(job: SweepJob) -> Iterator[Found | None]:
    return (_here(each.display_name, each.model) for each in job.candidates)


def _here(name: str, uri: SourceUri | None) -> Found | None:
    path = None if uri is None else model_here(uri)
    if uri is None or path is None:
        return None
    return Found(name, uri.filename, path, model_header(path))


def _check_beginning(
    base: Found, others: Sequence[Found], spec: CorpusSpec, progress: Progress
) -> None:
    text = HERE.read_text(spec.text, progress)
    if spec.format == "chat":
        text = "".join(islice(text.splitlines(keepends=True), _COMPARED_LINES))
    else:
        text = text[:_COMPARED_CHARACTERS]
    with open_tokenizer(base.path) as tokenizer:
        tokens = corpus_tokens(tokenizer, spec, text, progress)
        template = tokenizer.chat_template() if spec.format == "chat" else ""
    for other in others:
        with open_tokenizer(other.path) as tokenizer:
            found = corpus_tokens(tokenizer, spec, text, progress, template)
            check_same_tokens(tokens, found, other.name, tokenizer)


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
