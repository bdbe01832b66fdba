"""How far a run is, from its commits: base stages, and each candidate's running mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from kldcloud.corpus.chunks import Shard
from kldcloud.errors import FormatError
from kldcloud.report.summary_file import MAX_SUMMARY_BYTES, Summary, parse_summary
from kldcloud.staging.stage import MAX_CHUNKS
from kldcloud.status.committed import CommittedMeans
from kldcloud.status.run_files import (
    PlanNote,
    RunFiles,
    read_plan_note,
    read_shard_chunks,
    read_stage_chunks,
)
from kldcloud.store.base import Store

_SHARD: Final = re.compile(r"([0-9]{7,8})-([0-9]{4,8})\.shard")


@dataclass(frozen=True, slots=True)
class StageStatus:
    """The base's stage of one corpus.

    Attributes:
        shards_done: that are committed.
        shards: in all; None while nobody has said how many.
        chunks_done: in the shards that are committed.
        complete: it can be measured against.
    """

    corpus: str
    shards_done: int
    shards: int | None
    chunks_done: int
    complete: bool


@dataclass(frozen=True, slots=True)
class ResultStatus:
    """One candidate on one corpus.

    Attributes:
        chunks_done: that are committed.
        chunks: in all; None while nobody has said how many.
        kld: mean over what is committed, in nats a token; None if that is nothing.
        error: its standard error, cluster-robust by chunk; None of less than two chunks.
        same_top: share of those positions with the base's top token; None if there are none.
        same_top_error: as `error`.
    """

    corpus: str
    candidate: str
    chunks_done: int
    chunks: int | None
    kld: float | None
    error: float | None
    same_top: float | None = None
    same_top_error: float | None = None


@dataclass(frozen=True, slots=True)
class RunProgress:
    """What the commits of a run say.

    Attributes:
        finished: its summary is there.
        done: chunk evaluations that are committed, the base's too.
        total: chunk evaluations in all; None while nobody has said how many.
        odd: objects that are not what their keys promise, and why.
    """

    finished: bool
    done: int
    total: int | None
    encoding: str
    stages: tuple[StageStatus, ...]
    results: tuple[ResultStatus, ...]
    odd: dict[str, str]


class ProgressReader:
    """Looks at one run's commits again and again; reads nothing twice that cannot change."""

    def __init__(self, store: Store, run: str) -> None:
        self._store = store
        self._run = run
        self._prefix = f"runs/{run}"
        self._plan: PlanNote | None = None
        self._summary: Summary | None = None
        self._whole: dict[str, StageStatus] = {}
        self._cuts: dict[str, int] = {}
        self._means = CommittedMeans(store, run)

    def read(self, files: RunFiles) -> RunProgress:
        """Look once.

        Args:
            files: a listing of the run that is new.

        Raises:
            StoreError: the store could not be read.
        """
        self._plan = self._plan or read_plan_note(self._store, self._run)
        plan = self._plan or PlanNote()
        stages = tuple(self._stage(corpus, key, plan) for corpus, key in plan.stages.items())
        odd = self._read_summary()
        if self._summary is not None:
            results = _results_of(self._summary)
        else:
            results = self._results(files, plan)
            odd |= self._means.odd
        return RunProgress(
            finished=self._summary is not None,
            done=sum(each.chunks_done for each in stages)
            + sum(each.chunks_done for each in results),
            total=plan.measured and plan.measured + sum(plan.chunks.values()),
            encoding=plan.encoding,
            stages=stages,
            results=results,
            odd=odd,
        )

    def _read_summary(self) -> dict[str, str]:
        # Asked for itself, not looked up in the listing: what ended in between has ended.
        key = f"{self._prefix}/summary.json"
        if self._summary is None and self._store.size(key) is not None:
            try:
                self._summary = parse_summary(self._store.read(key, limit=MAX_SUMMARY_BYTES))
            except FormatError as error:
                return {key: error.message.removeprefix("summary.json: ")}
        return {}

    def _stage(self, corpus: str, key: str, plan: PlanNote) -> StageStatus:
        if key in self._whole:
            return self._whole[key]
        names = [info.key.split("/")[-1] for info in self._store.list(f"stages/{key}/")]
        complete = "manifest.json" in names
        shards = [Shard(int(f[1]), int(f[2])) for f in map(_SHARD.fullmatch, names) if f]
        size = read_shard_chunks(self._store, f"stages/{key}/plan.json")
        chunks = plan.chunks.get(corpus) or (
            read_stage_chunks(self._store, key) if complete else None
        )
        edges = plan.checkpoints.get(corpus, ())
        done = [shard for shard in shards if _is_cut(shard, chunks, size, edges)]
        in_all = _shards_in(chunks, size, edges) if chunks and size else None
        chunks_done = sum(shard.count for shard in done)
        status = StageStatus(corpus, len(done), in_all, chunks_done, complete)
        if complete:
            self._whole[key] = status
        return status

    def _results(self, files: RunFiles, plan: PlanNote) -> tuple[ResultStatus, ...]:
        begun = {(part.corpus, part.candidate) for part in files.partials}
        corpora = _in_order([*plan.chunks, *plan.stages], (corpus for corpus, _ in begun))
        candidates = _in_order(plan.candidates, (candidate for _, candidate in begun))
        chunks = {corpus: self._chunks(corpus, plan) for corpus in corpora}
        cuts = {corpus: self._cut(corpus) for corpus in corpora}
        self._means.take(
            part
            for part in files.partials
            if _is_cut(
                part.shard,
                chunks[part.corpus],
                cuts[part.corpus],
                plan.checkpoints.get(part.corpus, ()),
            )
        )
        results = []
        for corpus in corpora:
            for candidate in candidates:
                mean = self._means.mean(candidate, corpus)
                results.append(
                    ResultStatus(
                        corpus,
                        candidate,
                        mean.chunks if mean else 0,
                        chunks[corpus],
                        mean.kld.value if mean else None,
                        mean.kld.error if mean else None,
                        mean.same_top.value if mean else None,
                        mean.same_top.error if mean else None,
                    )
                )
        return tuple(results)

    def _chunks(self, corpus: str, plan: PlanNote) -> int | None:
        if corpus not in plan.chunks and corpus in plan.stages:
            return read_stage_chunks(self._store, plan.stages[corpus])
        return plan.chunks.get(corpus)

    def _cut(self, corpus: str) -> int | None:
        """Chunks a shard, as the run's first launch decided."""
        if corpus not in self._cuts:
            size = read_shard_chunks(self._store, f"{self._prefix}/shards-{corpus}.json")
            if size is not None:
                self._cuts[corpus] = size
        return self._cuts.get(corpus)


def _is_cut(shard: Shard, chunks: int | None, size: int | None, edges: Sequence[int]) -> bool:
    """Whether a shard is one of those that `cut_shards` cuts so many chunks into."""
    if size is None:
        return False
    start = max((edge for edge in edges if edge <= shard.first), default=0)
    end = min((edge for edge in (*edges, chunks or MAX_CHUNKS) if edge > shard.first), default=0)
    if (shard.first - start) % size:
        return False
    if chunks is None:
        return 1 <= shard.count <= min(size, end - shard.first)
    return shard.first < chunks and shard.count == min(size, end - shard.first)


def _shards_in(chunks: int, size: int, edges: Sequence[int]) -> int:
    """How many shards `cut_shards` cuts so many chunks into."""
    inside = sorted({0, chunks, *(edge for edge in edges if edge < chunks)})
    return sum(-(-(end - start) // size) for start, end in pairwise(inside))


def _in_order(planned: Iterable[str], found: Iterable[str]) -> list[str]:
    """The planned names as they come, then others."""
    first = dict.fromkeys(planned)
    return [*first, *sorted(set(found) - set(first))]


def _results_of(summary: Summary) -> tuple[ResultStatus, ...]:
    chunks = {corpus.name: corpus.chunks for corpus in summary.corpora}
    return tuple(
        ResultStatus(
            each.corpus,
            each.candidate,
            each.result.chunks,
            chunks[each.corpus],
            each.result.kld.mean.value,
            each.result.kld.mean.error,
            each.result.same_top.value,
            each.result.same_top.error,
        )
        for each in summary.results
        if each.result is not None
    )
