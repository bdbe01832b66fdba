"""Sweeps of tiny models, launched in the lab as people launch them, and what they leave behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import yaml
from store_server import BUCKET, S3Server
from tiny_models import TinyPair

from .session import Lab, Process

CHUNKS = 240
CONTEXT = 128
LAUNCH_SECONDS = 900.0
"""A cold SkyPilot on a busy machine takes minutes before the first chunk."""
RESULTS = ("summary.json", "tokens.parquet")
_WORDS = "the cat and dog went to old river in rain with a stone of iron while seven birds sang"


@dataclass(frozen=True, slots=True)
class Kept:
    """One object of a store, as S3 lists it: whoever writes it again changes it."""

    etag: str
    modified: datetime


@dataclass(frozen=True, slots=True)
class Desk:
    """A folder on the login node with a job and a cluster file, and a prefix of the lab's bucket.

    All desks have the same job, so that all their runs must come to the same bytes.
    """

    lab: Lab
    server: S3Server
    folder: Path
    uri: str
    job_facts: Mapping[str, Any]

    @property
    def job(self) -> Path:
        return self.folder / "job.yaml"

    @property
    def cluster(self) -> Path:
        return self.folder / "lab.yaml"

    @property
    def output(self) -> Path:
        """What `begin` shows, of the last command that it started."""
        return self.folder / "output"

    def write(self, job: Mapping[str, Any] | None = None, **cluster: Any) -> None:
        """Write both files, with changes to what every desk has."""
        self.job.write_text(yaml.safe_dump({**self.job_facts, "store": self.uri, **(job or {})}))
        facts = {
            "provider": "skypilot",
            "nodes": 2,
            "resources": {"infra": "slurm/lab", "cpus": "1+"},
            "workers": 1,
            "threads_per_worker": 1,
            "secrets": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
            "max_duration": "30m",
            **cluster,
        }
        self.cluster.write_text(yaml.safe_dump(facts))

    @property
    def settings(self) -> dict[str, str]:
        """The person's environment; SkyPilot takes offence at names of files that are not there."""
        return {name: text for name, text in self.lab.s3_env.items() if not name.endswith("_FILE")}

    def command(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run `kldcloud` on the login node to its end."""
        return self.lab.run(_kldcloud(*words), env=self.settings, timeout=LAUNCH_SECONDS)

    def launch(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Launch the job and stay with it."""
        return self.command(*self._launch(*options))

    def begin(self, *words: str | Path) -> subprocess.Popen[bytes]:
        """Start `kldcloud`, both streams in `output`; without words, the launch of the job."""
        argv = _kldcloud(*(words or self._launch()))
        return self.lab.popen(argv, self.output, env=self.settings)

    def kept(self, below: str = "") -> dict[str, Kept]:
        """Objects of the store whose keys start so."""
        prefix = self._key("")
        pages = self.server.client().get_paginator("list_objects_v2")
        return {
            each["Key"].removeprefix(prefix): Kept(each["ETag"], each["LastModified"])
            for page in pages.paginate(Bucket=BUCKET, Prefix=prefix + below)
            for each in page.get("Contents", [])
        }

    def read(self, key: str) -> bytes:
        return self.server.client().get_object(Bucket=BUCKET, Key=self._key(key))["Body"].read()

    def records(self, below: str, name: str) -> list[dict[str, Any]]:
        """JSON objects in order of their keys, those with `name` in the last part of the key."""
        keys = sorted(key for key in self.kept(below) if name in key.rpartition("/")[2])
        return [json.loads(self.read(key)) for key in keys]

    def commits(self) -> dict[str, Kept]:
        """What workers have committed: shards of the base stage, and candidates' partials."""
        found = {**self.kept("stages/"), **self.kept("runs/")}
        return {
            key: kept
            for key, kept in found.items()
            if key.endswith(".shard") or ("/partials/" in key and key.endswith(".parquet"))
        }

    def partials(self) -> int:
        return sum("/partials/" in key for key in self.kept("runs/"))

    def launch_record(self) -> dict[str, Any]:
        (record,) = self.records("launches/", "machine.json")
        return record

    def attempts(self) -> list[dict[str, Any]]:
        return [each for each in self.records("launches/", ".json") if "attempt" in each]

    def result_bytes(self) -> dict[str, bytes]:
        """What must be the same wherever the job ran."""
        (summary,) = (key for key in self.kept("runs/") if key.endswith("/summary.json"))
        return {name: self.read(summary.replace("summary.json", name)) for name in RESULTS}

    def machines_are_gone(self) -> bool:
        """Whether Slurm has no job, the nodes nothing but its daemon, and the store says so."""
        if self.lab.squeue():
            return False
        left = [each for name in ("n1", "n2") for each in self.lab.processes(name)]
        return len(left) == 2 and self.launch_record()["down"] > 0

    def _launch(self, *options: str) -> list[str | Path]:
        return ["launch", self.job, "--cluster", self.cluster, "-y", *options]

    def _key(self, key: str) -> str:
        return f"{self.uri.removeprefix(f's3://{BUCKET}/')}/{key}"


def write_text(path: Path) -> None:
    """Write words enough for all chunks, the same on every machine."""
    chance = random.Random(7)  # noqa: S311 - a text, no secret
    path.write_text(" ".join(chance.choices(_WORDS.split(), k=CHUNKS * CONTEXT)))


def job_facts(pair: TinyPair, text: Path) -> dict[str, Any]:
    """A sweep of two candidates in as many small steps as there are chunks."""
    return {
        "kind": "sweep",
        "name": "lab",
        "base": {"model": str(pair.base)},
        "candidates": [{"model": str(pair.candidate)}, {"quantize": "Q8_0"}],
        "corpora": [{"name": "text", "text": str(text), "context": CONTEXT, "chunks": CHUNKS}],
        "encoding": "hidden",
        "shard_chunks": 1,
    }


def until(condition: Callable[[], object], *, seconds: float = 300.0) -> Any:
    """Wait for something true and return it; fail if it does not come."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.2)
    return found


def processes_with(lab: Lab, node: str, *parts: str) -> list[Process]:
    """A node's processes whose command line has one of these parts."""
    return [each for each in lab.processes(node) if any(part in each.command for part in parts)]


def signal_all(processes: list[Process], number: signal.Signals) -> None:
    for each in processes:
        os.kill(each.pid, number)


@dataclass(slots=True)
class ProcessWatch:
    """What `ps` could have shown of the lab's processes while it watched, as a context manager."""

    lab: Lab
    command_lines: set[bytes] = field(default_factory=set)
    tokens: set[bytes] = field(default_factory=set)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._thread is not None
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        space = Path(f"/proc/{self.lab.pid}/ns/pid").readlink()
        prefix = b"RAY_AUTH_TOKEN="
        while not self._over.wait(0.1):
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    if (folder / "ns/pid").readlink() != space:
                        continue
                    self.command_lines.add((folder / "cmdline").read_bytes())
                    settings = (folder / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                self.tokens |= {s.removeprefix(prefix) for s in settings if s.startswith(prefix)}


@dataclass(frozen=True, slots=True)
class Watched:
    """A launch that is over."""

    desk: Desk
    said: subprocess.CompletedProcess[str]
    processes: ProcessWatch


def _kldcloud(*words: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "kldcloud.cli.main", *words]
