"""llama.cpp's base file, in and out of a store."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kldcloud.corpus.chunks import ChunkShape
from kldcloud.divergence.kernel import as_codes
from kldcloud.errors import FormatError, UserError
from kldcloud.models.cache import cache_dir
from kldcloud.models.digests import model_sha256
from kldcloud.models.sources import fetch
from kldcloud.pipeline.corpora import ChunkedCorpus
from kldcloud.pipeline.model_files import KldBase
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.runs import FoundRun
from kldcloud.pipeline.stage_base import import_kld, kld_identity
from kldcloud.spec.uri import parse_uri
from kldcloud.staging.kld_file import KldHeader, KldWriter, read_kld_header, read_kld_tokens
from kldcloud.staging.stage import StageIdentity, load_json, manifest_key
from kldcloud.staging.stage_reader import StageReader
from kldcloud.store import check_usable
from kldcloud.store.base import Store


def import_base_file(file: str, store: Store, progress: Progress) -> StageIdentity:
    """Stage a .kld file, so that jobs with it as their base find it there.

    Raises:
        UserError: if there is no such file.
        FormatError: if it is not what its header says.
    """
    check_usable(store)
    uri = parse_uri(file).resolved(Path.cwd())
    with progress.bar(f"fetching {file}", 0) as bar:
        path = fetch(uri, cache=cache_dir(), progress=bar.reach)
    header = read_kld_header(path)
    digest = model_sha256(path)
    base = KldBase(path.stem, path.name, path, digest, header)
    tokens = read_kld_tokens(path, header)
    corpus = ChunkedCorpus(path.stem, digest, tokens.size, tokens)
    identity = kld_identity(base, corpus)
    import_kld(store, base, corpus, identity, progress)
    return identity


def export_base_file(
    found: FoundRun, output: Path, *, corpus: str | None, overwrite: bool, progress: Progress
) -> None:
    """Write the base stage of a run as a .kld file.

    Raises:
        UserError: if the run has several corpora and none is named, or the file is there.
    """
    key = _stage_of(found, corpus)
    if found.store.size(manifest_key(key)) is None:
        raise UserError(
            f"the base stage of {found.run} is not whole: the run stopped before the end of its "
            "text, or has not come so far",
            hint="launch its job without stop, and export that run",
        )
    reader = StageReader(found.store, key)
    identity = reader.identity
    tokens = reader.tokens()
    shape = ChunkShape(identity.context)
    header = KldHeader(identity.context, identity.vocabulary, identity.chunks)
    with (
        KldWriter(output, header, tokens, overwrite=overwrite) as writer,
        progress.bar(f"writing {output.name}", identity.chunks) as bar,
    ):
        for chunk in range(identity.chunks):
            next_tokens = shape.next_tokens(tokens[chunk])
            at = 0
            words = []
            for piece in reader.encoding.pieces(reader.frame(chunk)):
                part = next_tokens[at : at + piece.rows]
                words.append(as_codes(piece, part).words.copy())
                at += piece.rows
            writer.write_chunk(np.concatenate(words))
            bar.advance()


def _stage_of(found: FoundRun, corpus: str | None) -> str:
    plan = load_json(found.store, f"{found.prefix}/plan.json")
    try:
        stages = {str(name): str(key) for name, key in plan["stages"]}
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{found.prefix}/plan.json is not a run's plan") from error
    if corpus is None and len(stages) == 1:
        return next(iter(stages.values()))
    if corpus not in stages:
        raise UserError(
            f"run {found.run} has the corpora {', '.join(stages)}",
            hint="name one with --corpus",
        )
    return stages[corpus]
