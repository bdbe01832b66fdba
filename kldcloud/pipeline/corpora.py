"""Texts as the base's tokenizer sees them, cut into chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from kldcloud.corpus.chunks import ChunkShape, Tokens, cut_chunks
from kldcloud.corpus.order import chunk_order
from kldcloud.divergence.checkpoints import checkpoints
from kldcloud.models.tokenizer import open_tokenizer
from kldcloud.pipeline.corpus_tokens import check_same_tokens, corpus_tokens
from kldcloud.pipeline.found import Found, about
from kldcloud.pipeline.model_files import KldBase
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.sources import Sources
from kldcloud.spec.job import CorpusSpec, SweepJob
from kldcloud.spec.stop import StopSpec
from kldcloud.staging.kld_file import read_kld_tokens
from kldcloud.staging.stage import tokens_bytes
from kldcloud.store.digest import sha256_bytes

KLD_CORPUS = "from-base-file"


@dataclass(frozen=True, slots=True)
class ChunkedCorpus:
    """A text as the base's tokenizer sees it, cut into chunks.

    Attributes:
        text_sha256: of the text's UTF-8 bytes; of the base file, where the tokens came from one.
        text_tokens: tokens in the whole text, before it was cut.
        chunks: int32 [chunks, n_ctx]; in the order of `corpus.order` where a run may stop.
        checkpoints: numbers of first chunks after which the run may stop; none for a run that
            measures all of them in the text's order.
        format: what the job calls the text's.
    """

    name: str
    text_sha256: str
    text_tokens: int
    chunks: Tokens
    checkpoints: tuple[int, ...] = ()
    format: Literal["text", "chat"] = "text"

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


def chunked_corpus(
    base: Found,
    others: Sequence[Found],
    spec: CorpusSpec,
    stop: StopSpec | None,
    progress: Progress,
    sources: Sources,
) -> ChunkedCorpus:
    """A text of the job's, tokenised and cut.

    Args:
        base: whose tokenizer decides.
        others: models whose tokenizers must make the same tokens of it.
        spec: what the job says of it.
        stop: when the run may leave it; None for at its end.
        progress: for the person at the terminal.
        sources: where this process finds what the job names.

    Raises:
        UserError: the text is not there, too short, or not of its format.
        FormatError: another model cuts it differently.
    """
    with about(f"corpus {spec.name}"):
        text = sources.read_text(spec.text, progress)
        digest = sha256_bytes(text.encode())
        with open_tokenizer(base.path) as tokenizer:
            tokens = corpus_tokens(tokenizer, spec, text, progress)
            template = tokenizer.chat_template() if others and spec.format == "chat" else ""
        chunks = cut_chunks(tokens, spec.context, spec.chunks)
        for other in others:
            with open_tokenizer(other.path) as tokenizer:
                found = corpus_tokens(tokenizer, spec, text, progress, template)
                check_same_tokens(tokens, found, other.name, tokenizer)
    corpus = ChunkedCorpus(spec.name, digest, len(tokens), chunks, format=spec.format)
    return corpus if stop is None else _in_order(corpus, stop)


def _in_order(corpus: ChunkedCorpus, stop: StopSpec) -> ChunkedCorpus:
    """The chunks in the order in which a run that may stop measures them."""
    order = chunk_order(corpus.tokens_sha256, corpus.count)
    steps = checkpoints(stop.least, corpus.count)
    return replace(corpus, chunks=np.ascontiguousarray(corpus.chunks[order]), checkpoints=steps)


def corpus_of_file(job: SweepJob, base: KldBase) -> ChunkedCorpus:
    """The chunks that a base file brings."""
    tokens = read_kld_tokens(base.path, base.header)
    name = KLD_CORPUS
    if job.corpora:
        spec = job.corpora[0]
        name = spec.name
        if spec.chunks != "all":
            tokens = tokens[: spec.chunks]
    return ChunkedCorpus(name, base.sha256, base.header.n_chunks * base.header.n_ctx, tokens)
