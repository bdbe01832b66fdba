"""Runs as their stores hold them in the middle of work, written without doing the work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kldcloud.corpus.chunks import Shard, cut_shards
from kldcloud.divergence.partial import Partial, PartialIdentity
from kldcloud.pipeline.life import (
    AttemptRecord,
    DriverLife,
    LaunchRecord,
    WorkerLife,
    attempt_key,
    driver_key,
    launch_key,
    worker_key,
)
from kldcloud.report.status_text import status_lines
from kldcloud.staging.stage import canonical_json
from kldcloud.status.reader import StatusReader
from kldcloud.status.status import Status
from kldcloud.status.subject import StatusSubject
from kldcloud.store.base import Store
from tests.divergence.synthetic_records import ROWS, records

NOW = 1_790_000_000.0
"""When these tests look: some time in 2026."""
RUN = "tiny-0123456789ab"
LAUNCH = "kld-tiny-01234567"
STAGE = "5" * 32
CHUNKS = 10
SHARD = 4
CANDIDATES = ("Q8_0", "Q4_K_M")


def attempt(seconds_ago: float) -> str:
    """The id of an attempt that began so long before `NOW`."""
    return f"{int((NOW - seconds_ago) * 1000):013d}-abcdef"


def shards() -> list[Shard]:
    return list(cut_shards(CHUNKS, SHARD))


@dataclass(frozen=True, slots=True)
class KeptRun:
    """One run of two candidates on ten chunks, cut into shards of four."""

    store: Store
    run: str = RUN

    def note_plan(self, **changes: Any) -> None:
        facts = {
            "run": self.run,
            "encoding": "logits",
            "stages": [["text", STAGE]],
            "candidates": list(CANDIDATES),
            "corpora": [["text", CHUNKS, 2 * ROWS + 2]],
        }
        self.store.write(f"runs/{self.run}/plan.json", canonical_json(facts | changes))

    def stage(self, done: Sequence[Shard], *, complete: bool = False) -> None:
        """Commit shards of the base: their names are all that a status looks at."""
        prefix = f"stages/{STAGE}"
        self.store.write(f"{prefix}/plan.json", canonical_json({"shard_chunks": SHARD}))
        for shard in done:
            self.store.write_new(f"{prefix}/{shard.label}.shard", b"frames")
        if complete:
            self.store.write_new(f"{prefix}/manifest.json", canonical_json({"chunks": CHUNKS}))

    def cut(self) -> None:
        facts = canonical_json({"shard_chunks": SHARD})
        self.store.write(f"runs/{self.run}/shards-text.json", facts)

    def key(self, candidate: str, shard: Shard) -> str:
        return f"runs/{self.run}/partials/{candidate}/text/{shard.label}.parquet"

    def commit(self, candidate: str, shard: Shard) -> Partial:
        """Commit a real partial; the same shard of the same candidate has the same numbers."""
        partial = self.partial(candidate, shard)
        self.store.write_new(self.key(candidate, shard), partial.to_bytes())
        return partial

    def partial(self, candidate: str, shard: Shard) -> Partial:
        seed = 100 * CANDIDATES.index(candidate) + shard.first
        found = records(shard.count, first=shard.first, seed=seed)
        identity = PartialIdentity(self.run, candidate, "text", shard.first, shard.count)
        return Partial.from_records(found, identity=identity)

    def measuring(self) -> None:
        """Everything that stands in the store once candidates are being measured."""
        self.note_plan()
        self.stage(shards(), complete=True)
        self.cut()

    def driver(self, of: str, **facts: Any) -> DriverLife:
        """Leave a driver's heartbeat, by default of one that measures with two workers."""
        usual = {
            "host": "front",
            "started": NOW - 600,
            "updated": NOW - 4,
            "state": "measuring",
            "label": "measuring",
            "workers": 2,
            "context": 64.0,
        }
        life = DriverLife(of, **(usual | facts))
        self.write(driver_key(self.run, of), life)
        return life

    def worker(self, of: str, number: int, **facts: Any) -> None:
        """Leave a worker's heartbeat, by default of one that has just finished a chunk."""
        usual = {
            "host": f"node-{number}",
            "pid": 100 + number,
            "updated": NOW - 3,
            "moved": NOW - 5,
            "task": self.key("Q8_0", Shard(0, 4)),
            "since": NOW - 9,
            "chunks": 2,
        }
        self.write(worker_key(self.run, of, number), WorkerLife(number, **(usual | facts)))

    def launch(self, launch: str = LAUNCH, **facts: Any) -> None:
        """Leave the record of what was rented."""
        usual = {
            "cluster": "h100.yaml",
            "nodes": 2,
            "machine": "AWS p5.4xlarge H100:1 [spot]",
            "hourly": 7.2,
            "launched": NOW - 4000,
        }
        self.write(launch_key(launch), LaunchRecord(launch, **(usual | facts)))

    def attempt(self, of: str, launch: str = LAUNCH, **facts: Any) -> None:
        usual = {"host": "front", "started": NOW - 3600, "updated": NOW - 5}
        self.write(attempt_key(launch, of), AttemptRecord(of, **(usual | facts)))

    def write(self, key: str, record: Any) -> None:
        self.store.write(key, json.dumps(asdict(record)).encode())

    def status(self, **subject: str) -> Status:
        """Look once, at `NOW`."""
        return StatusReader(StatusSubject(self.store, **(subject or {"run": self.run}))).read(NOW)

    def shown(self, **subject: str) -> str:
        """What a person would read."""
        return "\n".join(line.text for line in status_lines(self.status(**subject), NOW))


class CountingStore:
    """A store that remembers what was read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.ranges: list[tuple[str, int]] = []
        self.reads: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, key: str, **options: Any) -> bytes:
        self.reads.append(key)
        return self._store.read(key, **options)

    def read_into(self, key: str, start: int, out: memoryview, **options: Any) -> None:
        self.ranges.append((key, len(out)))
        self._store.read_into(key, start, out, **options)
