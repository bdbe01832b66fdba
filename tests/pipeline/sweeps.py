"""Sweeps of tiny models through the real pipeline: in this process, or as people launch them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kldcloud.pipeline.progress import MEASURING, Bar, Silent
from kldcloud.pipeline.sweep import SweepOutcome, run_sweep
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.job import SweepJob
from kldcloud.store import open_store
from kldcloud.store.base import Store

REPOSITORY = Path(__file__).parents[2]
TEXT = REPOSITORY / "tests" / "golden" / "text.txt"


@dataclass(slots=True)
class Notes:
    """Progress that remembers what a person would have read."""

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    bars: list[str] = field(default_factory=list)

    @contextmanager
    def bar(self, label: str, total: int, done: int = 0) -> Iterator[Bar]:
        self.bars.append(label)
        with Silent().bar(label, total, done) as bar:
            yield bar

    @contextmanager
    def measuring(self, store: Store, run: str, total: int, done: int = 0) -> Iterator[Bar]:
        self.bars.append(MEASURING)
        with Silent().measuring(store, run, total, done) as bar:
            yield bar

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def corpus(
    context: int = 128, chunks: int | str = 8, name: str = "text", text: Path = TEXT
) -> dict[str, Any]:
    """A corpus of a job."""
    return {"name": name, "text": str(text), "context": context, "chunks": chunks}


def facts(
    base: Path | Mapping[str, Any],
    candidates: Sequence[Path | Mapping[str, Any]],
    corpora: Sequence[Mapping[str, Any]],
    **options: Any,
) -> dict[str, Any]:
    """The content of a job file; models as paths, or as a job file says them."""
    return {
        "kind": "sweep",
        "name": "tiny",
        "base": {"model": str(base)} if isinstance(base, Path) else dict(base),
        "candidates": [
            {"model": str(each)} if isinstance(each, Path) else dict(each) for each in candidates
        ],
        "corpora": [dict(each) for each in corpora],
        **options,
    }


def sweep(
    job: Mapping[str, Any],
    store: str | Path,
    *,
    workers: int = 1,
    memory: int | None = None,
    progress: Notes | None = None,
) -> SweepOutcome:
    """Run a job in this process."""
    return run_sweep(
        SweepJob.model_validate(dict(job)),
        ClusterSpec(workers=workers, memory_per_worker=memory),
        open_store(str(store)),
        progress or Notes(),
    )


def result_bytes(store: str | Path, run: str) -> dict[str, bytes]:
    """What must never differ between two ways to run the same job."""
    kept = open_store(str(store))
    return {name: kept.read(f"runs/{run}/{name}") for name in ("summary.json", "tokens.parquet")}


@dataclass(slots=True)
class Launch:
    """A `kldcloud launch` under way in a process (and a process group) of its own."""

    process: subprocess.Popen[str]
    folder: Path

    def wait(self, timeout: float = 120) -> tuple[int, str, str]:
        """Its exit code and what it printed."""
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err

    def signal(self, number: signal.Signals) -> None:
        """As the kernel or a terminal would: to the launch, or for SIGINT to its whole group."""
        if number == signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def ray_folders(self) -> list[Path]:
        """Temporary folders that this launch has made and not removed."""
        return sorted(self.folder.glob("kld-*"))


def launch(folder: Path, job: Mapping[str, Any], store: str | Path, workers: int = 1) -> Launch:
    """Start `kldcloud launch`; its temporary files go below `folder`, which must be short."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.yaml").write_text(yaml.safe_dump(dict(job)))
    (folder / "cluster.yaml").write_text(f"provider: local\nworkers: {workers}\n")
    command = [sys.executable, "-m", "kldcloud.cli.main", "launch", str(folder / "job.yaml")]
    command += ["--cluster", str(folder / "cluster.yaml"), "--store", str(store)]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=os.environ | {"TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return Launch(process, folder)


def descendants(pid: int) -> dict[int, str]:
    """Processes below one, with their command lines (Ray titles its workers by what they run)."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            parents[int(entry.name)] = _parent(int(entry.name))
    found: dict[int, str] = {}
    below = {pid}
    while below := {child for child, parent in parents.items() if parent in below}:
        found |= {child: command_line(child) for child in below}
    return found


def command_line(pid: int) -> str:
    """Empty for a process that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def busy_workers(pid: int) -> list[int]:
    """Sweep workers below a process that are in the middle of a task."""
    return [
        child
        for child, command in descendants(pid).items()
        if command.startswith("ray::SweepWorker.run")
    ]


def until(condition: Callable[[], object], *, seconds: float = 60) -> Any:
    """Wait for something true and return it; fail if it does not come."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)
    return found


def committed(store: Path) -> int:
    """Shards and partials in a folder store."""
    return sum(1 for kind in ("*.shard", "*.parquet") for _ in store.rglob(kind))
