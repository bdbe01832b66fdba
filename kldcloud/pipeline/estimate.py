"""What a sweep will take: tokens, rows, bytes an encoding and time, before anything runs."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from kldcloud.models.llama_engine import LlamaEngine, LlamaOptions
from kldcloud.pipeline.plan import llama_options
from kldcloud.pipeline.prepare import ChunkedCorpus, KldBase, ModelFile, prepare_base
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.workers import worker_layout
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.job import SweepJob
from kldcloud.staging.choose import choose_encoding, encoding_costs


@dataclass(frozen=True, slots=True)
class CorpusEstimate:
    """One corpus of a plan."""

    name: str
    tokens: int
    chunks: int
    context: int
    rows: int


@dataclass(frozen=True, slots=True)
class SweepEstimate:
    """A plan in numbers.

    Attributes:
        evaluations: chunks that models will evaluate in all, base included.
        staged_bytes: of a base stage, by encoding.
        tokens_a_second: of one worker, and where that came from.
        seconds: for all evaluations on all workers, set-up aside.
    """

    name: str
    candidates: int
    corpora: tuple[CorpusEstimate, ...]
    evaluations: int
    encoding: str
    reason: str
    staged_bytes: dict[str, int]
    workers: int
    threads: int
    tokens_a_second: float
    rate_source: str
    seconds: float

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def to_text(self) -> str:
        """A few lines for a person."""
        lines = [f"{self.name}: {_counted(self.candidates, 'candidate')}"]
        lines += [
            f"  {c.name}: {c.chunks} chunks of {c.context} tokens, {c.rows:,} scored positions"
            f" ({c.tokens:,} tokens in the text)"
            for c in self.corpora
        ]
        for name, size in self.staged_bytes.items():
            chosen = " <- chosen" if name == self.encoding else ""
            lines.append(f"  base stage as {name}: {_size(size)}{chosen}")
        lines.append(f"  encoding {self.encoding}: {self.reason}")
        lines.append(
            f"  {self.evaluations} chunk evaluations at {self.tokens_a_second:,.0f} tokens/s a "
            f"worker ({self.rate_source}), {_counted(self.workers, 'worker')} of "
            f"{_counted(self.threads, 'thread')}: about {_duration(self.seconds)}"
        )
        return "\n".join(lines)


def estimate_sweep(
    job: SweepJob, cluster: ClusterSpec, rate: float | None, progress: Progress
) -> SweepEstimate:
    """Estimate a sweep; reads the base and the texts, makes no candidates.

    Args:
        job: the sweep.
        cluster: where it would run.
        rate: tokens a second of one worker; None evaluates one chunk of the base to find out.
        progress: for downloads.
    """
    base, corpora = prepare_base(job, progress)
    layout = worker_layout(cluster, job.engine, _model_bytes(base), sum(c.count for c in corpora))
    source = "stated"
    options = llama_options(cluster.engine_for(job.engine), layout.threads)
    if rate is None and isinstance(base, ModelFile):
        rate, source = _calibrate(base.path, corpora[0], options, progress), "one chunk of the base"
    elif rate is None:
        rate, source = 0.0, "no base model to calibrate with: state --rate"
    runs = len(job.candidates) + isinstance(base, ModelFile)
    evaluations = runs * sum(c.count for c in corpora)
    tokens = runs * sum(c.count * c.context for c in corpora)
    rows = sum(c.scored for c in corpora)
    if isinstance(base, KldBase):
        encoding, reason = "kld", "the base is a llama.cpp base file"
        staged = {"kld": rows * base.header.row_words * 2}
    else:
        remote = job.store.startswith("s3:")
        choice = choose_encoding(job.encoding, base.header, remote=remote)
        encoding, reason = choice.encoding, choice.reason
        costs = encoding_costs(base.header, remote=remote)
        staged = {name: int(cost.staged * rows) for name, cost in costs.items()}
        staged[".kld, for comparison"] = rows * 2 * base.header.vocabulary_size
    return SweepEstimate(
        name=job.name,
        candidates=len(job.candidates),
        corpora=tuple(
            CorpusEstimate(c.name, c.text_tokens, c.count, c.context, c.scored) for c in corpora
        ),
        evaluations=evaluations,
        encoding=encoding,
        reason=reason,
        staged_bytes=staged,
        workers=layout.workers,
        threads=layout.threads,
        tokens_a_second=rate,
        rate_source=source,
        seconds=tokens / (rate * layout.workers) if rate else 0.0,
    )


def _model_bytes(base: ModelFile | KldBase) -> int:
    return base.header.file_bytes if isinstance(base, ModelFile) else 0


def _calibrate(
    path: Path, corpus: ChunkedCorpus, options: LlamaOptions, progress: Progress
) -> float:
    progress.note("calibrating on one chunk")
    engine = LlamaEngine(path, corpus.context, options)
    try:
        engine.evaluate(corpus.chunks[0])
        started = time.perf_counter()
        engine.evaluate(corpus.chunks[0])
        return corpus.context / (time.perf_counter() - started)
    finally:
        engine.close()


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _size(size: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:  # noqa: PLR2004 - decimal units
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _duration(seconds: float) -> str:
    if not seconds:
        return "unknown"
    if seconds < 120:  # noqa: PLR2004
        return f"{seconds:.0f} s"
    if seconds < 7200:  # noqa: PLR2004
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
