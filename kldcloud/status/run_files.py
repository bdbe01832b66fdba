"""What a run has left in its store: its listing and its plan, believed no further than they go."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final, TypeGuard

from kldcloud.corpus.chunks import Shard
from kldcloud.errors import KldcloudError
from kldcloud.staging.stage import MAX_CHUNKS
from kldcloud.store.base import ObjectInfo, Store
from kldcloud.store.keys import is_part

_MAX_JSON_BYTES: Final = 8 << 20
_PARTIAL: Final = re.compile(r"([0-9]{7,8})-([0-9]{4,8})\.parquet")
_WORKER: Final = re.compile(r"worker-[0-9]{4,6}\.json")
_ATTEMPT: Final = re.compile(r"([0-9]{13})-[0-9a-f]{6}")
_LIFE_PARTS: Final = 5
_PARTIAL_PARTS: Final = 6
_OWN_PARTS: Final = 3
# As many as a job may have.
_MOST_CORPORA: Final = 64
_MOST_CANDIDATES: Final = 1024
# Each is a quarter more than the one before.
_MOST_CHECKPOINTS: Final = 256


@dataclass(frozen=True, slots=True)
class PartialFile:
    """A committed partial as the listing shows it; `size` in bytes."""

    key: str
    size: int
    candidate: str
    corpus: str
    shard: Shard


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The objects of a run.

    Attributes:
        run: its id.
        names: of the objects directly in its folder.
        partials: what is committed.
        attempts: attempt -> its workers' keys; in order of time.
    """

    run: str
    names: frozenset[str] = frozenset()
    partials: tuple[PartialFile, ...] = ()
    attempts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlanNote:
    """What a run's plan.json says; whatever it lacks or garbles is empty.

    Attributes:
        encoding: of the base stages.
        stages: corpus -> key of its base stage.
        candidates: their names, in the report's order.
        chunks: corpus -> how many it has.
        contexts: corpus -> tokens a chunk.
        checkpoints: corpus -> after how many chunks the run may stop; empty if it may not.
    """

    encoding: str = ""
    stages: Mapping[str, str] = field(default_factory=dict)
    candidates: tuple[str, ...] = ()
    chunks: Mapping[str, int] = field(default_factory=dict)
    contexts: Mapping[str, int] = field(default_factory=dict)
    checkpoints: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def measured(self) -> int | None:
        """Chunk evaluations of all candidates; None if it does not say."""
        return sum(self.chunks.values()) * len(self.candidates) or None


def runs_in(listing: Iterable[ObjectInfo]) -> list[RunFiles]:
    """Sort a listing of `runs/` (or of one run) by run."""
    whole = [(info.key.split("/"), info) for info in listing]
    inside = [(parts, info) for parts, info in whole if len(parts) >= _OWN_PARTS]
    inside.sort(key=lambda each: each[0][1])
    return [_sort_run(run, list(group)) for run, group in groupby(inside, lambda each: each[0][1])]


def list_run(store: Store, run: str) -> RunFiles:
    """List one run; empty if there is none."""
    found = runs_in(store.list(f"runs/{run}/"))
    return found[0] if found else RunFiles(run)


def _sort_run(run: str, found: list[tuple[list[str], ObjectInfo]]) -> RunFiles:
    names, partials = set(), []
    attempts: dict[str, list[str]] = {}
    for parts, info in found:
        if len(parts) == _OWN_PARTS:
            names.add(parts[2])
        elif len(parts) == _PARTIAL_PARTS and parts[2] == "partials":
            if label := _PARTIAL.fullmatch(parts[5]):
                shard = Shard(int(label[1]), int(label[2]))
                partials.append(PartialFile(info.key, info.size, parts[3], parts[4], shard))
        elif len(parts) == _LIFE_PARTS and parts[2] == "life":
            workers = attempts.setdefault(parts[3], [])
            if _WORKER.fullmatch(parts[4]):
                workers.append(info.key)
    return RunFiles(
        run,
        frozenset(names),
        tuple(partials),
        {attempt: tuple(attempts[attempt]) for attempt in sorted(attempts)},
    )


def attempt_started(attempt: str) -> float | None:
    """Unix time in seconds that an attempt's id begins with; None if it is not one."""
    found = _ATTEMPT.fullmatch(attempt)
    return int(found[1]) / 1000 if found else None


def read_plan_note(store: Store, run: str) -> PlanNote | None:
    """A run's plan.json; None if there is none (yet), or nothing like one."""
    facts = _small_json(store, f"runs/{run}/plan.json")
    if not isinstance(facts, dict):
        return None
    encoding, candidates = facts.get("encoding"), facts.get("candidates")
    if not isinstance(candidates, list):
        candidates = []
    return PlanNote(
        encoding=encoding if _is_name(encoding) else "",
        stages={row[0]: row[1] for row in _rows(facts.get("stages"), 2) if _is_name(row[1])},
        candidates=tuple(filter(_is_name, candidates))[:_MOST_CANDIDATES],
        chunks={row[0]: row[1] for row in _rows(facts.get("corpora"), 2) if _is_count(row[1])},
        checkpoints={
            row[0]: tuple(filter(_is_count, row[1:]))[:_MOST_CHECKPOINTS]
            for row in _rows(facts.get("checkpoints"), 2)
        },
        contexts={row[0]: row[2] for row in _rows(facts.get("corpora"), 3) if _is_count(row[2])},
    )


def read_shard_chunks(store: Store, key: str) -> int | None:
    """Chunks a shard, as a stage's plan.json or a run's shards-<corpus>.json says."""
    facts = _small_json(store, key)
    size = facts.get("shard_chunks") if isinstance(facts, dict) else None
    return size if _is_count(size) else None


def read_stage_chunks(store: Store, stage: str) -> int | None:
    """Chunks of a finished base stage, from its manifest."""
    facts = _small_json(store, f"stages/{stage}/manifest.json")
    count = facts.get("chunks") if isinstance(facts, dict) else None
    return count if _is_count(count) else None


def _small_json(store: Store, key: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    try:
        return json.loads(store.read(key, limit=_MAX_JSON_BYTES))
    except (KldcloudError, ValueError, RecursionError):
        return None


def _rows(found: object, least: int) -> list[list[Any]]:
    """Entries that are lists of at least so many, the first a name."""
    if not isinstance(found, list):
        return []
    good = (row for row in found if isinstance(row, list) and len(row) >= least)
    return [row for row in good if _is_name(row[0])][:_MOST_CORPORA]


def _is_name(found: object) -> TypeGuard[str]:
    # Names become parts of keys, so nothing else can be one; and no other reaches a terminal.
    return isinstance(found, str) and is_part(found)


def _is_count(found: object) -> TypeGuard[int]:
    return type(found) is int and 1 <= found <= MAX_CHUNKS
