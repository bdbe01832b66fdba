"""What distillation gains on a small model, by seed and by what is trained.

    python benchmarks/qad.py [--seeds 1 2 3] [--what all codes norms] [--set KEY=VALUE ...] [--json]

Every row is jobs/qad-demo.yaml with another seed or less to train: Q4_0 of SmolLM2-135M, from its
importance-matrix file, on Python's reference manual. The peers are in the same run: llama.cpp's
Q4_0 by rounding to nearest, and with the importance matrix. All are measured by kldcloud's own
sweep on text that neither training nor its evaluations have seen. Finished rows are not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from kernel import machine

from kldcloud.cli.terminal import TerminalProgress
from kldcloud.models.cache import cache_dir
from kldcloud.pipeline.qad import run_qad
from kldcloud.report.differences import comparisons, find_pair
from kldcloud.report.summary_file import Summary
from kldcloud.spec.cluster import load_cluster
from kldcloud.spec.load import load_job
from kldcloud.spec.qad_job import QadJob
from kldcloud.store import open_store

JOB = Path(__file__).parent.parent / "jobs" / "qad-demo.yaml"
WHAT = {
    "all": (),
    "codes": ("train.train_norms=false", "train.lr_norms=null"),
    "norms": ("train.train_codes=false",),
}
"""What is trained, as changes to the job."""


@dataclass(frozen=True, slots=True)
class Row:
    """One text of one job: mean KLD in nats, and the paired difference of student and init."""

    what: str
    seed: int
    corpus: str
    nearest: float
    imatrix: float
    student: float
    low: float
    high: float
    same_top: float
    seconds: float


def main() -> int:
    """Run every combination and print one line a text."""
    parser = argparse.ArgumentParser(description="Distillation by seed and by what is trained.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT))
    parser.add_argument("--set", nargs="+", default=[], dest="changes")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows: list[Row] = []
    if not arguments.json:
        print(machine())
        print("what   seed  text          nearest  imatrix     QAD  change  95 % of the difference")
    for what in arguments.what:
        for seed in arguments.seeds if what == "all" else arguments.seeds[:1]:
            for row in _run(what, seed, arguments.changes):
                rows.append(row)
                if not arguments.json:
                    _show(row)
    if arguments.json:
        print(json.dumps([asdict(each) for each in rows], indent=2))
    return 0


def _run(what: str, seed: int, changes: list[str]) -> list[Row]:
    settings = [f"train.seed={seed}", f"name=qad-{what}-{seed}", *WHAT[what], *changes]
    settings.append(f"store={cache_dir() / 'benchmarks' / 'qad'}")
    job = load_job(JOB, settings)
    assert isinstance(job, QadJob)
    store = open_store(job.store)
    outcome = run_qad(job, load_cluster(job.cluster), store, TerminalProgress())
    return [
        _row(what, seed, outcome.summary, corpus.name, outcome.seconds)
        for corpus in outcome.summary.corpora
    ]


def _row(what: str, seed: int, summary: Summary, corpus: str, seconds: float) -> Row:
    found = {
        each.candidate: each.result
        for each in summary.results
        if each.corpus == corpus and each.result
    }
    nearest, imatrix, student = found
    means = [found[name].kld.mean.value or 0.0 for name in (nearest, imatrix, student)]
    low, high = _difference(summary, corpus, imatrix, student)
    top = found[student].same_top.value or 0.0
    return Row(what, seed, corpus, *means, low, high, top, seconds)


def _difference(summary: Summary, corpus: str, imatrix: str, student: str) -> tuple[float, float]:
    """The interval of the student's mean less its init's."""
    pair = find_pair(comparisons(summary)[corpus], imatrix, student)
    low, high = (pair and pair.interval95) or (None, None)
    if pair is None or low is None or high is None:
        return 0.0, 0.0
    return (-high, -low) if pair.better == student else (low, high)


def _show(row: Row) -> None:
    change = row.student / row.imatrix - 1
    print(
        f"{row.what:6} {row.seed:4}  {row.corpus:12}{row.nearest:9.4f}{row.imatrix:9.4f}"
        f"{row.student:8.4f}{change:+8.1%}  {row.low:+.4f} to {row.high:+.4f}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
