"""A distillation from a validated job to a proven file: the order of things, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kldcloud.errors import KldcloudError
from kldcloud.models.cache import cache_folder
from kldcloud.models.llama_library import llama
from kldcloud.pipeline.machines import Machines, NodeFacts
from kldcloud.pipeline.model_files import ModelFile, model_file
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.publish import publish_training
from kldcloud.pipeline.qad_copy import copy_here
from kldcloud.pipeline.qad_files import (
    QadFiles,
    qad_files,
    ship_models,
    source_of,
)
from kldcloud.pipeline.qad_folder import export_folder
from kldcloud.pipeline.qad_modelopt import IDENTITY, find_trainer, train_with_modelopt
from kldcloud.pipeline.qad_others import warn_of_others
from kldcloud.pipeline.qad_teacher import find_teacher, tokenizer_files
from kldcloud.pipeline.qad_texts import QadTexts, qad_texts
from kldcloud.pipeline.qad_training import train_to_the_end, training_order, usable_gpus
from kldcloud.pipeline.qad_verdict import HELD_OUT, Verdict, verdict_of
from kldcloud.pipeline.runs import job_bytes
from kldcloud.pipeline.sources import Sources
from kldcloud.pipeline.sweep import (
    ON_ITS_OWN,
    Launched,
    check_layers_on_gpu,
    mixed_engines,
    run_sweep,
    this_machine,
)
from kldcloud.pipeline.workers import world_for
from kldcloud.qad.extra import require_extra
from kldcloud.qad.progress_file import measuring_told
from kldcloud.qad.result_file import SCHEMA as RESULT_SCHEMA
from kldcloud.qad.result_file import QadResult, write_result
from kldcloud.qad.training_tokens import keep_tokens
from kldcloud.report.summary_file import Summary
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.job import SweepJob
from kldcloud.spec.qad_job import QadJob
from kldcloud.spec.qad_modelopt import MODELOPT
from kldcloud.store import check_usable
from kldcloud.store.base import Store

if TYPE_CHECKING:
    from kldcloud.qad.looks import Progressed
    from kldcloud.qad.training_order import TrainingOrder


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


def run_qad(
    job: QadJob,
    cluster: ClusterSpec,
    store: Store,
    progress: Progress,
    machines: Machines | None = None,
    launched: Launched = ON_ITS_OWN,
) -> QadOutcome:
    """Train a student, or what is left of it, write its file, and measure what that is worth.

    Args:
        job: what is wanted.
        cluster: how many processes train.
        store: where everything is kept.
        progress: for the person at the terminal.
        machines: where they train; this machine if None.
        launched: what the driver is part of.

    Raises:
        KldcloudError: one line that says what, where and the next step.
    """
    started = time.monotonic()
    require_extra()
    check_usable(store)
    trainer = find_trainer(job, cluster) if job.student.trainer == MODELOPT else None
    llama()
    machines = machines or this_machine()
    nodes = machines.nodes()
    layers, gpus = cluster.engine_for(job.engine).n_gpu_layers, usable_gpus()
    _check_for_sweep(nodes, layers, gpus, launched, progress)
    sources = launched.sources
    teacher = find_teacher(job, progress, sources)
    texts = qad_texts(job, teacher.path, progress, sources)
    files = qad_files(job, teacher, texts.training.open(), progress, sources)
    world = trainer.world if trainer else world_for(cluster, nodes, gpus)
    of_trainer = IDENTITY if trainer else None
    order = training_order(job, cluster, world, files, texts, of_trainer)
    launched.on_run(order.run)
    warn_of_others(store, order.run, job, launched.launch, progress)
    store.write_new(f"{order.prefix}/job.yaml", job_bytes(job))
    with progress.bar("uploading training tokens", order.tokens.size) as bar:
        keep_tokens(store, order.tokens, texts.training.path)
        bar.reach(order.tokens.size, order.tokens.size)
    if machines.remote:
        ship_models(files, store, progress)
    modelopts = None
    if trainer:
        copy = None if machines.remote else job.export.path
        beside = tokenizer_files(job, progress, sources)
        progressed, modelopts = train_with_modelopt(
            order, trainer, files, beside, store, progress, copy
        )
    else:
        progressed = train_to_the_end(order, store, machines, world, progress)
    trained = progressed.step > 0
    export, student = "", None
    with measuring_told(store, order.prefix):
        if trained:
            export = f"{order.prefix}/student.gguf"
            student = modelopts or _export(
                job, files, order, store, progress, sources, here=not machines.remote
            )
        else:
            progress.note(_nothing_trained(job, progressed))
        if job.student.activations:
            progress.note("what follows is measured by llama.cpp, whose activations are not NVFP4")
        sweep = _proof(job, files, texts, student)
        # The run that a launch is known by is the distillation.
        of_sweep = replace(launched, on_run=ON_ITS_OWN.on_run)
        summary = run_sweep(sweep, cluster, store, progress, machines, of_sweep).summary
        verdict = verdict_of(summary, files.init.name, _student_name(files) if trained else None)
        result = _result(order, files, progressed, summary, verdict, export)
        write_result(store, order.prefix, result)
        publish_training(store, summary, result)
    return QadOutcome(order.run, summary, verdict, export, time.monotonic() - started)


def _check_for_sweep(
    nodes: Sequence[NodeFacts], layers: int, gpus: int, launched: Launched, progress: Progress
) -> None:
    """What would end the sweep after hours of training ends it now."""
    mixed_engines(nodes, gpus=layers != 0 or gpus > 0, allowed=launched.allow_mixed)
    check_layers_on_gpu(layers, nodes, progress)


def _export(
    job: QadJob,
    files: QadFiles,
    order: TrainingOrder,
    store: Store,
    progress: Progress,
    sources: Sources,
    *,
    here: bool,
) -> ModelFile:
    """The best checkpoint as a file in the store; also where the job says, if that is `here`."""
    from kldcloud.qad.checkpoints import Checkpoints
    from kldcloud.qad.export import export_gguf

    checkpoints = Checkpoints(store, order.prefix, order.run)
    best = checkpoints.progressed(checkpoints.steps()[-1]).best
    assert best is not None  # noqa: S101 - training ends with a look
    weights = checkpoints.read(best.step, optimizer=False).weights
    path = cache_folder("qad", "students") / f"{order.run}-{best.step:08d}.gguf"
    compared = export_gguf(files.init.path, weights, path)
    progress.note(f"exported step {best.step}: {compared:,} weights are what training used")
    store.write_new_file(f"{order.prefix}/student.gguf", path)
    copy = job.export.path if here else None
    if job.export.to == "hf":
        tokenizer = tokenizer_files(job, progress, sources)
        export_folder(order, files.teacher.path, weights, tokenizer, store, progress, copy)
    elif copy is not None:
        copy_here(path, copy, progress)
    return model_file("qad", f"{order.run}.gguf", path, progress)


def _proof(job: QadJob, files: QadFiles, texts: QadTexts, student: ModelFile | None) -> SweepJob:
    """The sweep that measures the result beside what quantising alone comes to."""
    candidates = list(files.baselines) or [files.init]
    if student is not None:
        candidates.append(replace(student, name=_student_name(files)))
    init = job.student.init
    context = job.data.context
    corpora = [
        {
            "name": HELD_OUT,
            "text": str(texts.proof),
            "context": context,
            "chunks": job.eval.heldout_chunks,
        }
    ]
    if job.eval.second_text is not None:
        corpora.append(
            {
                "name": "second-text",
                "text": str(texts.second or job.eval.second_text),
                "context": context,
                "chunks": job.eval.second_chunks,
            }
        )
    content: dict[str, Any] = {
        "kind": "sweep",
        "name": f"{job.name}-proof",
        "base": {
            "model": source_of(files.teacher, job.teacher.model),
            "name": files.teacher.name,
        },
        "candidates": [
            {"model": source_of(each, init.model if init else None), "name": each.name}
            for each in candidates
        ],
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
