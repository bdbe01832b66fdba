"""The text of a distillation in pieces: what is trained on, looked at, and left unseen."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np

from kldcloud.corpus.chunks import Tokens, check_length, cut_chunks
from kldcloud.errors import UserError
from kldcloud.models.cache import cache_folder
from kldcloud.models.engine import Vocabulary
from kldcloud.models.llama_tokenizer import open_llama_tokenizer
from kldcloud.models.long_text import LongText
from kldcloud.models.long_tokens import LongTokenizer, TokenPiece
from kldcloud.pipeline.found import about
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.sources import Sources
from kldcloud.qad.training_tokens import TokenFile, write_tokens
from kldcloud.qad.whole_file import whole_file, written
from kldcloud.spec.qad_job import QadJob

MOST_AT_ONCE: Final = (1 << 31) - 1
"""Bytes of a text that llama.cpp counts."""
_READ_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class QadTexts:
    """The text of a job, in three parts that do not overlap.

    Attributes:
        training: what is trained on.
        looks: int32 [m, context], what is looked at while training; it chooses the best checkpoint.
        proof: a file of the rest, which nothing has seen: what the result is measured on. Where the
            job says how many chunks, no more of a long rest than they need.
        second: a file of the beginning of the job's second text, where that is longer than its
            chunks need; None where the text is measured as it is, or there is none.
    """

    training: TokenFile
    looks: Tokens
    proof: Path
    second: Path | None = None


def qad_texts(job: QadJob, teacher: Path, progress: Progress, sources: Sources) -> QadTexts:
    """Cut the job's text, at ends of lines where it has them.

    Raises:
        UserError: the text is too short for its parts, or the second text to be measured on.
    """
    data, second = job.data, job.eval.second_text
    with about("data.text"):
        text = LongText(sources.text_file(data.text, progress), str(data.text))
    with open_llama_tokenizer(teacher) as tokenizer:
        cores = len(os.sched_getaffinity(0))
        long = LongTokenizer(tokenizer.text, cores)
        beginning = None
        if second is not None:
            # What is wrong with it is said now, not after hours of training.
            with about("eval.second_text"):
                other = LongText(sources.text_file(second, progress), str(second))
                wanted = _Measured("the text", data.context, job.eval.second_chunks)
                stop = wanted.end(long, other, 0)
                beginning = _part_file(other, 0, stop) if stop < other.end else None
        found = _Cutting(job, text, long, tokenizer.vocabulary, progress).parts()
        return replace(found, second=beginning)


@dataclass(frozen=True, slots=True)
class _Cutting:
    """A text and what cuts it."""

    job: QadJob
    text: LongText
    tokenizer: LongTokenizer
    vocabulary: Vocabulary
    progress: Progress

    def parts(self) -> QadTexts:
        """The three parts; the last two are at the end of the text."""
        data, text = self.job.data, self.text
        split = text.cut(text.place(round(text.characters * (1 - data.heldout))))
        counting = self._pieces("counting held-out tokens", split, text.end)
        tokens = sum(len(each.tokens) for each in counting)
        told = self.job.eval.chunks
        wanted = max(tokens // data.context // 2 - 1, 1) if told == "all" else told
        # Looks take a part of the held-out text, and leave at least as much of it unseen.
        share = (wanted + 1) * data.context / max(tokens, 1)
        if share > 1 / 2:
            raise UserError(
                f"data.text: its held-out part has {tokens:,} tokens, too few for"
                f" {wanted} chunks of {data.context} to look at and as many to be measured on",
                hint="give a longer text, a larger data.heldout, or fewer eval.chunks",
            )
        before = text.characters_before(split)
        middle = text.cut(text.place(before + round((text.characters - before) * share)))
        name = "data.text: what looks leave of it"
        measured = _Measured(name, data.context, self.job.eval.heldout_chunks)
        stop = measured.end(self.tokenizer, text, middle)
        looks = self._looks(split, middle, wanted)
        training = self._training(split)
        return QadTexts(training, looks, _part_file(text, middle, stop))

    def _looks(self, start: int, stop: int, chunks: int) -> Tokens:
        pieces = self._pieces("tokenising held-out text", start, stop)
        found = np.concatenate([np.empty(0, np.int32), *(each.tokens for each in pieces)])
        looks = cut_chunks(found, self.job.data.context, chunks)
        if self._bos is not None:
            looks = looks.copy()
            looks[:, 0] = self._bos
        return looks

    def _training(self, stop: int) -> TokenFile:
        data = self.job.data
        limit: int | Literal["all"] = "all"
        if data.tokens != "all":
            limit = max(data.tokens // data.context, 1)
        with closing(self._pieces("tokenising training text", 0, stop)) as pieces:
            parts = (each.tokens for each in pieces)
            return write_tokens(parts, data.context, limit, self._bos)

    @property
    def _bos(self) -> int | None:
        """What an engine evaluates every chunk with; None where the vocabulary adds none."""
        return self.vocabulary.bos if self.vocabulary.add_bos else None

    def _pieces(self, label: str, start: int, stop: int) -> Generator[TokenPiece]:
        with self.progress.bar(label, stop - start) as bar:
            for each in self.tokenizer.pieces(self.text, start, stop):
                yield each
                bar.reach(each.stop - start, stop - start)


@dataclass(frozen=True, slots=True)
class _Measured:
    """A part of a text that a sweep will measure, which tokenises all of it at once.

    Attributes:
        name: what errors call it.
        context: tokens in a chunk.
        chunks: of it that are measured.
    """

    name: str
    context: int
    chunks: int | Literal["all"]

    def end(self, tokenizer: LongTokenizer, text: LongText, start: int) -> int:
        """Where there are tokens enough for its chunks, and for one more.

        Raises:
            UserError: it has fewer than two chunks, or more than a sweep can tokenise.
        """
        least = 2 if self.chunks == "all" else self.chunks + 1
        counted, stop = 0, start
        with closing(tokenizer.pieces(text, start, text.end)) as pieces:
            for each in pieces:
                counted, stop = counted + len(each.tokens), each.stop
                if counted >= least * self.context:
                    break
        check_length(counted, self.context, self.name)
        stop = text.end if self.chunks == "all" else stop
        if stop - start > MOST_AT_ONCE:
            raise UserError(
                f"{self.name} has {stop - start:,} bytes, more than the {MOST_AT_ONCE:,} that"
                " llama.cpp tokenises at once",
                hint="say how many chunks of it are measured: eval.heldout_chunks, second_chunks",
            )
        return stop


def _part_file(text: LongText, start: int, stop: int) -> Path:
    """A part of a text as a file of this machine's cache, by its digest."""
    digest = hashlib.sha256()
    for block in text.blocks(start, stop):
        digest.update(block)
    path = cache_folder("texts", "texts") / f"{digest.hexdigest()[:32]}.txt"
    if not path.exists():
        with whole_file(path) as part, written(path), part.open("wb") as file:
            file.writelines(text.blocks(start, stop))
    return path


def tokens_digest(training: TokenFile, looks: Tokens) -> str:
    """SHA-256 of both parts, one after the other, with their shapes."""
    shapes = [(training.chunks, training.context), looks.shape]
    digest = hashlib.sha256(repr(shapes).encode())
    with training.path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    digest.update(np.asarray(looks, "<i4").tobytes())
    return digest.hexdigest()
