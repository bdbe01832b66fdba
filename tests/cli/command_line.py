"""The command as a person runs it: its arguments in, what it said and its exit code out."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from tiny_models import TinyPair

# Work of two seconds and more leaves such a line, which a busy machine makes any work.
_PROGRESS = re.compile(r"[^:]+: \d+ s")
CONTEXT = 64
CHUNKS = 6


@dataclass(frozen=True, slots=True)
class Said:
    """What one run of the command left behind."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line of a refusal.

        The promise itself: exit code 2, nothing on stdout, and on stderr one line for the person.
        """
        assert self.code == 2, self.err
        assert self.out == ""
        return self.last_words

    @property
    def last_words(self) -> str:
        """The only line on stderr that is not about progress."""
        assert self.err.endswith("\n")
        lines = [line for line in self.err.splitlines() if not _PROGRESS.fullmatch(line)]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("kldcloud: ")
        assert lines[0].isprintable()
        return lines[0].removeprefix("kldcloud: ")


def run(
    *arguments: object,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> Said:
    """Run the command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "kldcloud.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=env,
        timeout=timeout,
        check=False,
    )
    return Said(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True, slots=True)
class Desk:
    """A folder with a job for a pair of tiny models, whose store is beside it."""

    folder: Path
    pair: TinyPair

    @property
    def job(self) -> Path:
        return self.folder / "job.yaml"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def cluster(self) -> Path:
        return self.folder / "lone.yaml"

    @property
    def text(self) -> Path:
        return self.folder / "text.txt"

    def write_job(self) -> None:
        """Write the text and the job: one candidate that exists and one that is to be made."""
        self.text.write_text("the cat and the dog went to the old river in the rain. " * 40)
        facts = {
            "kind": "sweep",
            "name": "tiny",
            "base": {"model": str(self.pair.base)},
            "candidates": [{"model": str(self.pair.candidate)}, {"quantize": "Q8_0"}],
            "corpora": [
                {"name": "text", "text": str(self.text), "context": CONTEXT, "chunks": CHUNKS}
            ],
            "cluster": str(self.cluster),
            "store": str(self.store),
        }
        # One worker: what these tests wait for is processes that start.
        self.cluster.write_text("provider: local\nworkers: 1\nthreads_per_worker: 1\n")
        self.job.write_text(yaml.safe_dump(facts, sort_keys=False))
