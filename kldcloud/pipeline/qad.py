"""A distillation from a validated job to a proven file: the order of things, and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kldcloud import __version__
from kldcloud.errors import KldcloudError, StoreError
from kldcloud.models.cache import cache_folder
from kldcloud.models.llama_library import llama
from kldcloud.pipeline.model_files import ModelFile, model_file
from kldcloud.pipeline.prepare import HERE
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.publish import publish_training
from kldcloud.pipeline.qad_files import (
    QadFiles,
    QadTexts,
    find_teacher,
    qad_files,
    qad_texts,
    text_file,
    tokens_digest,
)
from kldcloud.pipeline.qad_folder import export_folder
from kldcloud.pipeline.qad_verdict import HELD_OUT, Verdict, verdict_of
from kldcloud.pipeline.sweep import run_sweep
from kldcloud.qad.extra import require_extra
from kldcloud.qad.progress_file import (
    end_told,
    first_progress,
    measuring_told,
    read_progress,
    tell,
)
from kldcloud.qad.result_file import SCHEMA as RESULT_SCHEMA
from kldcloud.qad.result_file import QadResult, write_result
from kldcloud.report.summary_file import Summary
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.job import SweepJob
from kldcloud.spec.qad_job import QadJob
from kldcloud.staging.stage import canonical_json
from kldcloud.store import check_usable
from kldcloud.store.base import Store
from kldcloud.store.digest import sha256_bytes

if TYPE_CHECKING:
    from kldcloud.qad.looks import Progressed
    from kldcloud.qad.training import TrainingOrder

SCHEMA: Final = "kldcloud.qad/1"
ID_DIGITS: Final = 12
_LOOK_EVERY: Final = 1.0
"""Seconds between two looks at how far training is."""


@dataclass(frozen=True, slots=True)
class QadOutcome:
    """A finished distillation.

    Attributes:
        run: its id.
        summary: of the sweep that measured the result.
        verdict: what came of it.
        export: the key of the file in the store; empty if nothing was trained.
        seconds: wall-clock of this launch.
    """

    run: str
    summary: Summary
    verdict: Verdict
    export: str
    seconds: float

    @property
    def failed(self) -> KldcloudError | None:
        """Why the result is no good, if it is none."""
        return self.verdict.failed


def run_qad(job: QadJob, cluster: ClusterSpec, store: Store, progress: Progress) -> QadOutcome:
    """Train a student, or what is left of it, write its file, and measure what that is worth.

    Args:
        job: what is wanted.
        cluster: how many processes train.
        store: where everything is kept.
        progress: for the person at the terminal.

    Raises:
        KldcloudError: one line that says what, where and the next step.
    """
    started = time.monotonic()
    require_extra()
    check_usable(store)
    llama()
    teacher = find_teacher(job, progress, HERE)
    texts = qad_texts(job, teacher.path, progress, HERE)
    files = qad_files(job, texts.training, progress, HERE)
    order = _order(job, cluster, files, texts)
    store.write_new(f"{order.prefix}/job.yaml", _job_bytes(job))
    progressed = _train(order, store, cluster, progress)
    trained = progressed.step > 0
    export, student = "", None
    with measuring_told(store, order.prefix):
        if trained:
            export, student = _export(job, order, store, progress)
        else:
            progress.note(_nothing_trained(job, progressed))
        if job.student.activations:
            progress.note("what follows is measured by llama.cpp, whose activations are not NVFP4")
        sweep = _proof(job, files, texts, student)
        summary = run_sweep(sweep, cluster, store, progress).summary
        verdict = verdict_of(summary, files.init.name, trained=trained)
        result = _result(order, files, progressed, summary, verdict, export)
        write_result(store, order.prefix, result)
        publish_training(store, summary, result)
    return QadOutcome(order.run, summary, verdict, export, time.monotonic() - started)


def _order(job: QadJob, cluster: ClusterSpec, files: QadFiles, texts: QadTexts) -> TrainingOrder:
    import torch

    from kldcloud.qad.training import TrainingOrder

    world = _processes(cluster)
    facts = {
        "schema": SCHEMA,
        "kldcloud": __version__,
        "torch": torch.__version__,
        "name": job.name,
        "teacher": files.teacher.sha256,
        "init": files.init.sha256,
        "tokens": tokens_digest(texts.training, texts.looks),
        "train": job.train.model_dump(mode="json"),
        "activations": job.student.activations,
        "eval_every": job.eval.every,
        # Sums over processes are made in another order for another number of them.
        "processes": world,
    }
    run = f"{_slug(job.name)}-{sha256_bytes(canonical_json(facts))[:ID_DIGITS]}"
    order = TrainingOrder(
        run=run,
        prefix=f"qad/{run}",
        teacher=files.teacher.path,
        init=files.init.path,
        tokens=texts.training,
        heldout=texts.looks,
        train=job.train,
        eval_every=job.eval.every,
        checkpoint_every=job.checkpoints.every,
        keep=job.checkpoints.keep,
        threads=cluster.threads_per_worker or max(_cores() // world, 1),
        activations=job.student.activations,
    )
    _ = order.batches  # too little text is refused before anything starts
    return order


def _train(
    order: TrainingOrder, store: Store, cluster: ClusterSpec, progress: Progress
) -> Progressed:
    """Train to the end; how far it came."""
    from kldcloud.clusters.ray_training import World, train_here
    from kldcloud.qad.checkpoints import Checkpoints
    from kldcloud.qad.process import forget_refusal, raise_refusal, train_process
    from kldcloud.qad.training import is_over

    checkpoints = Checkpoints(store, order.prefix, order.run)

    def last() -> Progressed | None:
        steps = checkpoints.steps()
        return checkpoints.progressed(steps[-1]) if steps else None

    before = last()
    tell(store, order.prefix, first_progress(store, order, before))
    if before is not None and is_over(before, order):
        progress.note(f"training {order.run} is complete already")
        return before
    if before is not None:
        progress.note(f"training goes on from step {before.step} of {order.batches.steps}")
    forget_refusal(store, order.prefix)
    world = World(_processes(cluster), gpus=_gpus() > 0)
    with _watched(store, order, before.step if before else 0, progress):
        try:
            train_here(world, partial(train_process, order, store.uri))
        except KldcloudError:
            raise_refusal(store, order.prefix)
            raise
    raise_refusal(store, order.prefix)
    after = last()
    if after is None:
        raise StoreError(
            f"{order.prefix}: training ended and left no checkpoint",
            hint="launch the job again",
        )
    return after


@contextmanager
def _watched(store: Store, order: TrainingOrder, step: int, progress: Progress) -> Iterator[None]:
    """A bar that follows what the training processes say in the store."""
    steps = order.batches.steps
    ended = threading.Event()
    with progress.bar("training", steps, step) as bar:

        def follow() -> None:
            seen = step
            while not ended.wait(_LOOK_EVERY):
                found = read_progress(store, order.prefix)
                if found is not None and found.step > seen:
                    bar.advance(found.step - seen)
                    seen = found.step

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            with end_told(store, order.prefix):
                yield
        finally:
            ended.set()
            thread.join()
    found = read_progress(store, order.prefix)
    if found is not None and found.warning:
        progress.warn(found.warning)


def _export(
    job: QadJob, order: TrainingOrder, store: Store, progress: Progress
) -> tuple[str, ModelFile]:
    """The best checkpoint as a file, here and in the store."""
    from kldcloud.qad.checkpoints import Checkpoints
    from kldcloud.qad.export import export_gguf

    checkpoints = Checkpoints(store, order.prefix, order.run)
    best = checkpoints.progressed(checkpoints.steps()[-1]).best
    assert best is not None  # noqa: S101 - training ends with a look
    weights = checkpoints.read(best.step, optimizer=False).weights
    path = cache_folder("qad", "students") / f"{order.run}-{best.step:08d}.gguf"
    compared = export_gguf(order.init, weights, path)
    progress.note(f"exported step {best.step}: {compared:,} weights are what training used")
    key = f"{order.prefix}/student.gguf"
    store.write_new_file(key, path)
    if job.export.to == "hf":
        export_folder(order, order.teacher, weights, store, progress, job.export.path)
    elif job.export.path is not None:
        _copy(path, job.export.path)
        progress.note(f"copied to {job.export.path}")
    return key, model_file("qad", f"{order.run}.gguf", path, progress)


def _copy(path: Path, target: Path) -> None:
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, part)
        part.replace(target)
    except OSError as error:
        raise StoreError(
            f"{target}: {error.strerror}", hint="the store has the file; copy it from there"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _proof(job: QadJob, files: QadFiles, texts: QadTexts, student: ModelFile | None) -> SweepJob:
    """The sweep that measures the result beside what quantising alone comes to."""
    candidates = list(files.baselines) or [files.init]
    if student is not None:
        candidates.append(replace(student, name=_student_name(files)))
    context = job.data.context
    corpora = [
        {
            "name": HELD_OUT,
            "text": str(text_file(texts.proof)),
            "context": context,
            "chunks": job.eval.heldout_chunks,
        }
    ]
    if job.eval.second_text is not None:
        corpora.append(
            {
                "name": "second-text",
                "text": str(job.eval.second_text),
                "context": context,
                "chunks": job.eval.second_chunks,
            }
        )
    content: dict[str, Any] = {
        "kind": "sweep",
        "name": f"{job.name}-proof",
        "base": {"model": str(files.teacher.path), "name": files.teacher.name},
        "candidates": [{"model": str(each.path), "name": each.name} for each in candidates],
        "corpora": corpora,
        "engine": job.engine.model_dump(),
        "store": job.store,
    }
    return SweepJob.model_validate(content)


def _result(
    order: TrainingOrder,
    files: QadFiles,
    progressed: Progressed,
    summary: Summary,
    verdict: Verdict,
    export: str,
) -> QadResult:
    return QadResult(
        schema=RESULT_SCHEMA,
        run=order.run,
        teacher=files.teacher.name,
        init=files.init.name,
        student=_student_name(files) if export else "",
        steps=progressed.step,
        tokens=progressed.step * order.tokens_a_step,
        looks=progressed.looks,
        export=export,
        sweep=summary.run,
        verdict=verdict.lines,
        failed=None if verdict.failed is None else verdict.failed.message,
    )


def _student_name(files: QadFiles) -> str:
    """What reports call the student."""
    return f"{files.init.name}-qad"


def _nothing_trained(job: QadJob, progressed: Progressed) -> str:
    (first,) = progressed.looks
    return (
        f"nothing is trained: the init loses {first.kld:.4g} nats on held-out text, less than"
        f" train.skip_below of {job.train.skip_below:g}"
    )


def _job_bytes(job: QadJob) -> bytes:
    from kldcloud.pipeline.runs import job_bytes

    return job_bytes(job)


def _processes(cluster: ClusterSpec) -> int:
    return cluster.workers if cluster.workers != "auto" else max(_gpus(), 1)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "qad"
