"""The plan of a sweep: which stages, which shards, and the run's id.

Everything that determines a number goes into the id, and nothing else does: not the cluster, the
workers, the shard size or the store.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from kldcloud import __version__
from kldcloud.corpus.chunks import Shard, cut_shards, shard_size
from kldcloud.corpus.order import ORDER_RULE
from kldcloud.divergence.kernel import NUMERICS_VERSION
from kldcloud.divergence.sequential import STOP_RULE
from kldcloud.errors import FormatError
from kldcloud.models.transformers_options import TransformersOptions
from kldcloud.pipeline.corpora import ChunkedCorpus
from kldcloud.pipeline.model_files import FolderModel, KldBase, Model, ModelFile
from kldcloud.pipeline.options import Engines
from kldcloud.pipeline.prepare import PreparedSweep
from kldcloud.pipeline.stage_base import kld_identity
from kldcloud.staging.choose import BaseShape, EncodingChoice, choose_encoding
from kldcloud.staging.folder_head import shape_of_folder
from kldcloud.staging.stage import StageIdentity, agree_on_json, canonical_json
from kldcloud.store.base import Store
from kldcloud.store.digest import sha256_bytes

RUN_SCHEMA = "kldcloud.run/1"
ID_DIGITS = 12
NOT_MIXED: Mapping[str, str] = MappingProxyType({})
MIXED: Final = "mixed "
"""What a fact of an engine begins with in which machines differ."""


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """What a launch will do, decided and reproducible.

    Attributes:
        run: the run's id.
        choice: the base stage's encoding and why.
        stages: one identity a corpus, in order.
        engines: how models are run.
        engine: the fingerprint of what runs the base (for a .kld file, the candidates), and of the
            machines where they differ.
        mixed: that last part of it.
    """

    run: str
    prepared: PreparedSweep
    choice: EncodingChoice
    stages: tuple[StageIdentity, ...]
    engines: Engines
    engine: Mapping[str, str]
    mixed: Mapping[str, str]
    llama_compat: bool

    @property
    def prefix(self) -> str:
        return f"runs/{self.run}"

    def partial_key(self, candidate: str, corpus: str, shard: Shard) -> str:
        return f"{self.prefix}/partials/{candidate}/{corpus}/{shard.label}.parquet"

    def worst_key(self, candidate: str, corpus: str, shard: Shard) -> str:
        return f"{self.prefix}/worst/{candidate}/{corpus}/{shard.label}.bin"


def make_plan(
    prepared: PreparedSweep,
    engines: Engines,
    *,
    remote: bool,
    force_logits: str | None = None,
    mixed: Mapping[str, str] = NOT_MIXED,
) -> SweepPlan:
    """Decide a sweep.

    Args:
        prepared: what is measured.
        engines: how models are run.
        remote: whether the store is reached over a network.
        force_logits: why hidden states were found unfit, if they were.
        mixed: what differs between machines that were allowed to differ.
    """
    job, base = prepared.job, prepared.base
    if isinstance(base, KldBase):
        choice = EncodingChoice("kld", "the base is a llama.cpp base file")
    elif force_logits is not None:
        choice = EncodingChoice("logits", force_logits)
    else:
        choice = choose_encoding(job.encoding, _shape(base, engines), remote=remote)
    first = prepared.candidates[0] if isinstance(base, KldBase) else base
    engine = engines.of(first).fingerprint() | dict(mixed)
    stages = tuple(
        kld_identity(base, corpus)
        if isinstance(base, KldBase)
        else StageIdentity(
            base_sha256=base.sha256,
            tokens_sha256=corpus.tokens_sha256,
            context=corpus.context,
            chunks=corpus.count,
            vocabulary=prepared.vocabulary,
            encoding=choice.encoding,
            engine=engine,
        )
        for corpus in prepared.corpora
    )
    facts = {
        "schema": RUN_SCHEMA,
        "kldcloud": __version__,
        "numerics": NUMERICS_VERSION,
        "name": job.name,
        "base": base.name,
        "stages": [[c.name, s.key] for c, s in zip(prepared.corpora, stages, strict=True)],
        "candidates": [[c.name, c.file, c.sha256] for c in prepared.candidates],
        "engine": engine,
        "llama_compat": job.llama_compat,
    }
    others = other_engines(prepared, engines, engine)
    if others:
        facts["engines"] = others
    if job.noise_floor:
        facts["noise_floor"] = True
    if job.stop is not None:
        # Which chunks come first and when they are enough decides what is in the summary.
        facts["stop"] = {"rule": STOP_RULE, "order": ORDER_RULE, **job.stop.model_dump()}
    run = run_id(job.name, facts)
    return SweepPlan(run, prepared, choice, stages, engines, engine, mixed, job.llama_compat)


def other_engines(
    prepared: PreparedSweep, engines: Engines, engine: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """Of candidates that are not run as the base is: what differs; all of another engine's.

    What a base has and a candidate has not, such as a way of quantising, is empty.
    """
    found = {}
    for candidate in prepared.candidates:
        its = engines.of(candidate).fingerprint()
        if its["name"] == engine["name"]:
            bases = dict.fromkeys((key for key in engine if not key.startswith(MIXED)), "")
            its = {k: value for k, value in (bases | its).items() if engine.get(k) != value}
        if its:
            found[candidate.name] = its
    return found


def _shape(base: Model, engines: Engines) -> BaseShape:
    """What the choice of an encoding depends on."""
    settings = engines.of(base)
    if isinstance(base, FolderModel) and isinstance(settings, TransformersOptions):
        return shape_of_folder(base.folder, settings)
    if isinstance(base, ModelFile):
        return BaseShape.of(base.header)
    raise FormatError(f"{base.path} has no engine")


def run_shards(store: Store, plan: SweepPlan, corpus: ChunkedCorpus, workers: int) -> list[Shard]:
    """How a run cuts a corpus: as its first launch decided, so that a resume finds its partials."""
    proposed = plan.prepared.job.shard_chunks or shard_size(corpus.count, workers)
    key = f"{plan.prefix}/shards-{corpus.name}.json"
    agreed = agree_on_json(store, key, {"shard_chunks": proposed})
    size = agreed.get("shard_chunks") if isinstance(agreed, dict) else None
    if not isinstance(size, int) or size < 1:
        raise FormatError(f"{key}: no shard size", hint="delete it and run again")
    return list(cut_shards(corpus.count, size, corpus.checkpoints))


def run_id(name: str, facts: Mapping[str, object]) -> str:
    """A run's id: its job's name, and a digest of everything that determines its numbers."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "run"
    return f"{slug}-{sha256_bytes(canonical_json(facts))[:ID_DIGITS]}"
