"""From what a job says of an importance matrix to a file of one on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kldcloud.corpus.chunks import Tokens, cut_chunks
from kldcloud.models.gguf_header import GgufHeader
from kldcloud.models.imatrix import importance_matrix
from kldcloud.models.imatrix_file import check_fit, read_imatrix
from kldcloud.models.llama_tokenizer import tokenize
from kldcloud.pipeline.options import llama_options
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.sources import Sources
from kldcloud.spec.engine import EngineOptions
from kldcloud.spec.imatrix import ImatrixSpec
from kldcloud.store.digest import sha256_bytes


@dataclass(frozen=True, slots=True)
class FoundImatrix:
    """An importance matrix that a job names, looked at.

    Attributes:
        path: of the file; None for one that is to be computed.
        dataset: what the text is called that it is to be computed from; empty beside a file.
        text_sha256: of that text's UTF-8 bytes.
        chunks: int32 [n, context] of it; None beside a file.
    """

    path: Path | None
    dataset: str = ""
    text_sha256: str = ""
    chunks: Tokens | None = None


def find_imatrix(
    spec: ImatrixSpec, model: Path, header: GgufHeader, progress: Progress, sources: Sources
) -> FoundImatrix:
    """Fetch what is named, and see that it is an importance matrix of the model, or a long text.

    Args:
        spec: what the job says.
        model: a GGUF with the tokenizer and the tensors of the model that will be quantised.
        header: of it.
        progress: for downloads.
        sources: where things are.

    Raises:
        UserError: for what is not there, or not what it should be.
    """
    if spec.file is not None:
        path = sources.fetch(spec.file, progress)
        check_fit(read_imatrix(path), header, str(path))
        return FoundImatrix(path)
    text = sources.read_text(spec.source, progress)
    # As llama-imatrix reads its -f file: less one newline at the end.
    tokens = tokenize(model, text.removesuffix("\n")).tokens
    chunks = cut_chunks(tokens, spec.context, spec.chunks)
    return FoundImatrix(None, spec.source.filename, sha256_bytes(text.encode()), chunks)


def made_imatrix(
    found: FoundImatrix, model: Path, sha256: str, engine: EngineOptions, progress: Progress
) -> Path:
    """The file of an importance matrix, computed with the model itself if it is not there.

    Raises:
        EngineError: if llama.cpp fails.
        StoreError: if the cache cannot be written.
    """
    if found.chunks is None:
        assert found.path is not None  # noqa: S101 - a found one has one of the two
        return found.path
    # One process on all cores: workers begin only when all candidates are there.
    options = llama_options(engine, engine.threads or os.cpu_count() or 1)
    with progress.bar(f"importance matrix of {found.dataset}", len(found.chunks)) as bar:
        return importance_matrix(
            model, sha256, found.chunks, options, dataset=found.dataset, progress=bar.reach
        )


def warn_of_flattery(
    imatrices: Mapping[str, FoundImatrix], measured: Mapping[str, str], progress: Progress
) -> None:
    """Tell of matrices that are computed from a text that is measured as well.

    Args:
        imatrices: by candidate.
        measured: the corpora's names, by their texts' digests.
        progress: told.
    """
    for name, found in imatrices.items():
        if found.text_sha256 in measured:
            progress.warn(
                f"candidate {name}: its importance matrix is of the text that "
                f"{measured[found.text_sha256]} measures, which flatters it"
            )
