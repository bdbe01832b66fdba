"""Bytes of a plan: the base stage in each encoding, what .kld would take, and what travels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kldcloud.estimate.files import PlannedBase, PlannedCorpus, PlannedModel
from kldcloud.pipeline.sources import FETCHED_ANYWHERE
from kldcloud.spec.job import SweepJob
from kldcloud.staging.choose import COMPRESSION, choose_encoding, encoding_costs
from kldcloud.staging.kld_layout import KldHeader

_TOKEN_BYTES: Final = 4
_ROW_FACTS: Final = 4 * 8 + 4
"""Beside a row's codes: normaliser, tail, target and entropy, and the top token."""


@dataclass(frozen=True, slots=True)
class StageSize:
    """All base stages of the job in one encoding.

    Attributes:
        encoding: hidden, logits or kld.
        chosen: whether it is the one that will be staged.
        rows_bytes: of the rows, which every candidate reads.
        head_bytes: of the output heads and the tokens, which every worker reads once.
        exact: whether it is known and not an estimate of how well rows compress.
    """

    encoding: str
    chosen: bool
    rows_bytes: int
    head_bytes: int
    exact: bool

    @property
    def bytes(self) -> int:
        """In the store."""
        return self.rows_bytes + self.head_bytes


@dataclass(frozen=True, slots=True)
class Volumes:
    """What travels before and while the job runs.

    Attributes:
        models_per_node: bytes of models that each machine fetches; on this machine, those that
            are not here yet.
        stage_per_node: bytes of the base stage that each machine reads, over all candidates; None
            if nothing says how large a row is.
        upload: bytes of files of this machine that go into the store first.
        uploads: those files.
        unknown: models whose size nothing says; the sums leave them out.
    """

    models_per_node: int
    stage_per_node: int | None
    upload: int
    uploads: tuple[str, ...]
    unknown: tuple[str, ...]


def kld_bytes(base: PlannedBase, corpora: Sequence[PlannedCorpus]) -> int | None:
    """Bytes of llama.cpp's base files for the same rows, to the byte; None without a vocabulary."""
    if base.vocabulary is None:
        return None
    return sum(
        KldHeader(each.context, base.vocabulary, each.chunks).expected_bytes for each in corpora
    )


def stage_sizes(
    job: SweepJob, base: PlannedBase, corpora: Sequence[PlannedCorpus], *, remote: bool
) -> tuple[tuple[StageSize, ...], str]:
    """The encodings that this base can have, the chosen one first, and why that one.

    Args:
        job: which may say which encoding.
        base: the base.
        corpora: the texts.
        remote: whether the store is reached over a network.
    """
    tokens = sum(each.chunks * each.context * _TOKEN_BYTES for each in corpora)
    rows = sum(each.rows for each in corpora)
    if base.kld:
        whole = kld_bytes(base, corpora) or 0
        packed = StageSize("kld", True, int(whole / COMPRESSION), tokens, exact=False)
        return (packed,), "the base is a llama.cpp base file"
    if base.shape is None:
        return (), "the base's vocabulary is unknown"
    choice = choose_encoding(job.encoding, base.shape, remote=remote)
    sizes = []
    for name, cost in encoding_costs(base.shape, remote=remote).items():
        hidden = name == "hidden"
        row = cost.staged + (0 if hidden else _ROW_FACTS)
        head = len(corpora) * base.shape.vocabulary * base.shape.state_bytes if hidden else 0
        chosen = name == choice.encoding
        sizes.append(StageSize(name, chosen, int(rows * row), head + tokens, exact=hidden))
    return tuple(sorted(sizes, key=lambda size: not size.chosen)), choice.reason


def volumes(
    base: PlannedBase,
    candidates: Sequence[PlannedModel],
    corpora: Sequence[PlannedCorpus],
    stage: StageSize | None,
    *,
    passes: int,
    remote: bool,
    nodes: int,
    workers: int,
) -> Volumes:
    """What each machine fetches and what this one uploads.

    Args:
        base: the base.
        candidates: the candidates.
        corpora: the texts, those of importance matrices among them.
        stage: the chosen encoding's size.
        passes: of models that are measured against the base stage.
        remote: whether the machines are others than this one.
        nodes: how many machines there are.
        workers: on all of them.
    """
    # What is quantised while it is loaded is fetched as the base, once.
    made = [each for each in candidates if each.uri is not None or not base.in_safetensors]
    models = [*([] if base.kld else [base.file]), *made]
    fetched = [
        each
        for each in models
        if remote or (each.uri and each.uri.scheme in FETCHED_ANYWHERE and not each.here)
    ]
    files = [(each.uri, each.size) for each in (base.file, *candidates)]
    files += [(each.uri, each.size) for each in corpora]
    # A file that several candidates are made of, or that is measured twice, travels once.
    own = {
        uri: size or 0
        for uri, size in files
        if remote and uri is not None and uri.scheme not in FETCHED_ANYWHERE
    }
    read = None
    if stage is not None:
        read = (stage.rows_bytes * passes + stage.head_bytes * workers) // nodes
    return Volumes(
        models_per_node=sum({each.uri or each.name: each.size or 0 for each in fetched}.values()),
        stage_per_node=read,
        upload=sum(own.values()),
        uploads=tuple(uri.filename for uri in own),
        unknown=tuple(each.name for each in fetched if each.size is None),
    )
