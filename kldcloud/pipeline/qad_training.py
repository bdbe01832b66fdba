"""Training as its driver sees it: what processes are told, started, followed, and done."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from kldcloud import __version__
from kldcloud.errors import KldcloudError, StoreError
from kldcloud.pipeline.machines import Machines, World
from kldcloud.pipeline.plan import run_id
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.qad_files import QadFiles
from kldcloud.pipeline.qad_texts import QadTexts, tokens_digest
from kldcloud.pipeline.work import reference
from kldcloud.qad.progress_file import end_told, first_progress, read_progress, tell
from kldcloud.qad.training_tokens import reference as kept_as
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.qad_job import QadJob
from kldcloud.store.base import Store

if TYPE_CHECKING:
    from kldcloud.qad.looks import Progressed
    from kldcloud.qad.training_order import TrainingOrder

SCHEMA: Final = "kldcloud.qad/1"
_LOOK_EVERY: Final = 1.0
"""Seconds between two looks at how far training is."""


def training_order(
    job: QadJob,
    cluster: ClusterSpec,
    world: World,
    files: QadFiles,
    texts: QadTexts,
    trainer: Mapping[str, object] | None = None,
) -> TrainingOrder:
    """What every process of a run is told; the run's id is a digest of what decides its bits.

    Args:
        job: what is wanted.
        cluster: how many threads a process has.
        world: the processes.
        files: the models.
        texts: the chunks.
        trainer: more of what decides the bits, where another one trains.

    Raises:
        UserError: the text is too short for one step.
    """
    import torch

    from kldcloud.qad.training_order import TrainingOrder

    train = job.train.on(gpus=world.gpus)
    facts = {
        "schema": SCHEMA,
        "kldcloud": __version__,
        "torch": torch.__version__,
        "name": job.name,
        "teacher": files.teacher.sha256,
        "init": files.init.sha256,
        "tokens": tokens_digest(texts.training, texts.looks),
        # Its precision decided: what GPUs began in bfloat16, CPUs do not end in float32.
        "train": train.model_dump(mode="json"),
        "activations": job.student.activations,
        "eval_every": job.eval.every,
        # Sums over processes are made in another order for another number of them.
        "processes": world.processes,
        **(trainer or {}),
    }
    run = run_id(job.name, facts)
    order = TrainingOrder(
        run=run,
        prefix=f"qad/{run}",
        teacher=reference(files.teacher),
        init=reference(files.init),
        tokens=kept_as(f"qad/{run}", texts.training),
        heldout=texts.looks,
        train=train,
        eval_every=job.eval.every,
        checkpoint_every=job.checkpoints.every,
        keep=job.checkpoints.keep,
        threads=cluster.threads_per_worker or max(_cores() // world.each, 1),
        activations=job.student.activations,
    )
    _ = order.batches  # too little text is refused before anything starts
    return order


def train_to_the_end(
    order: TrainingOrder, store: Store, machines: Machines, world: World, progress: Progress
) -> Progressed:
    """Train to the end; how far it came."""
    from kldcloud.clusters.ray_training import train
    from kldcloud.qad.checkpoints import Checkpoints
    from kldcloud.qad.process import forget_refusal, raise_refusal, train_process
    from kldcloud.qad.training_order import is_over

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
    with _watched(store, order, before.step if before else 0, progress):
        try:
            train(machines, world, partial(train_process, order, store.uri))
        except KldcloudError:
            raise_refusal(store, order.prefix)
            raise
        # Processes that were started again and found it there have ended well.
        raise_refusal(store, order.prefix)
    after = last()
    if after is None or not is_over(after, order):
        raise StoreError(
            f"{order.prefix}: training ended and left no checkpoint of its end",
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


def usable_gpus() -> int:
    """Those of this machine that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _cores() -> int:
    return len(os.sched_getaffinity(0))
