"""Training by NVIDIA Model Optimizer, as its driver sees it: files, commands, and a GGUF."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kldcloud.errors import StoreError, UserError
from kldcloud.models.cache import cache_folder
from kldcloud.models.part_file import complete_hashed
from kldcloud.pipeline.machines import World
from kldcloud.pipeline.model_files import ModelFile, model_file
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.qad_folder import FOLDER
from kldcloud.pipeline.qad_training import usable_gpus
from kldcloud.qad.looks import Look, Progressed, best_of
from kldcloud.qad.modelopt.environment import Environment, find_environment
from kldcloud.qad.modelopt.pinned import COMMIT, REQUIREMENTS
from kldcloud.qad.modelopt.workplace import Workplace, steps
from kldcloud.qad.progress_file import Telling, end_told, first_progress, looked, read_record
from kldcloud.qad.training_tokens import open_tokens
from kldcloud.qad.whole_file import whole_file, written
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.qad_job import QadJob
from kldcloud.spec.qad_modelopt import check_cluster
from kldcloud.staging.stage import canonical_json
from kldcloud.store.base import Store

if TYPE_CHECKING:
    from kldcloud.pipeline.qad_files import QadFiles
    from kldcloud.qad.training_order import TrainingOrder

TRAINED: Final = "modelopt.json"
LOG: Final = "modelopt.log"
_MOST_BYTES: Final = 16 << 20
_KEPT_LOG: Final = 16 << 20
"""Bytes of the log that the store keeps, its end."""
IDENTITY: Final[Mapping[str, object]] = {
    "trainer": "modelopt",
    "installed": [COMMIT, *REQUIREMENTS],
}
"""A part of the run's id."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What the store keeps of a training that has ended, beside the student.

    Attributes:
        step: steps done.
        looks: at held-out chunks on the way, by Model Optimizer.
    """

    step: int
    looks: tuple[Look, ...]


@dataclass(frozen=True, slots=True)
class Trainer:
    """What trains on this machine.

    Attributes:
        environment: Model Optimizer's.
        gpus: processes, one each.
        spot: whether this machine may be taken away.
    """

    environment: Environment
    gpus: int
    spot: bool

    @property
    def world(self) -> World:
        return World(1, self.gpus, gpus=True)


def find_trainer(job: QadJob, cluster: ClusterSpec) -> Trainer:
    """Look for what training needs, before anything is made for it.

    Raises:
        UserError: it is not here.
    """
    check_cluster(job, cluster)
    gpus = usable_gpus()
    if not gpus:
        raise UserError(
            "trainer: modelopt needs an NVIDIA GPU that torch can use, and this machine has none",
            hint="name a cluster with GPUs, such as --cluster h100, or write"
            " student.trainer: kldcloud",
        )
    return Trainer(find_environment(), gpus, cluster.spot)


def train_with_modelopt(
    order: TrainingOrder,
    trainer: Trainer,
    files: QadFiles,
    tokenizer: Sequence[Path],
    store: Store,
    progress: Progress,
    copy: Path | None,
) -> tuple[Progressed, ModelFile]:
    """Train to the end and export; how far it came, and the student as a GGUF.

    Args:
        order: what is trained, and how.
        trainer: from `find_trainer`.
        files: the models on this machine.
        tokenizer: files of the original that belong beside the student's.
        store: gets the student, its folder and the log.
        progress: for the person at the terminal.
        copy: a folder here that gets the student's folder too.

    Raises:
        UserError: the GPUs cannot share a step, or another process trains this run here.
        EngineError: one of its commands failed.
        FormatError: what it exported is not what it should be.
        StoreError: no room.
    """
    path = cache_folder("qad", "students") / f"{order.run}-modelopt.gguf"
    done = _trained(store, order)
    if done is None:
        with end_told(store, order.prefix):
            work = Workplace((cache_folder("qad", "students") / f"{order.run}-modelopt").absolute())
            _train(order, trainer, files, store, progress, work)
            done = _keep(order, files, tokenizer, store, progress, work, path)
    else:
        progress.note(f"training {order.run} is complete already")
        _fetch(store, order, path, progress)
    if copy is not None:
        from kldcloud.pipeline.qad_copy import copy_folder_from_store

        copy_folder_from_store(store, f"{order.prefix}/{FOLDER}", copy, progress)
    student = model_file("qad", f"{order.run}.gguf", path, progress)
    return Progressed(done.step, done.looks), student


def _train(
    order: TrainingOrder,
    trainer: Trainer,
    files: QadFiles,
    store: Store,
    progress: Progress,
    work: Workplace,
) -> None:
    """Run its commands, or what is left of them."""
    from kldcloud.qad.modelopt.configuration import write_configuration
    from kldcloud.qad.modelopt.running import log_tail, logged_step, read_progress, run_steps
    from kldcloud.qad.modelopt.teacher_folder import is_complete, write_teacher

    tokens = open_tokens(order.tokens, store)
    write_configuration(order, tokens, work, files.teacher.header.architecture, trainer.gpus)
    if not is_complete(work.teacher):
        progress.note("writing the teacher as transformers reads it")
        write_teacher(files.teacher.path, work.teacher)
    commands = steps(trainer.environment, work, order.tokens.context)
    variables = trainer.environment.variables(work.libraries)
    before = read_progress(work, order.eval_every)
    if before.step:
        progress.note(f"training goes on from step {before.step} of {order.batches.steps}")
    progress.note(f"Model Optimizer trains on {trainer.gpus} GPUs; {work.log} has its words")
    if trainer.spot:
        progress.warn(
            "its checkpoints are on this machine alone: one that is taken away starts over"
        )
    first = replace(first_progress(store, order, before), tokens_per_second=None)
    try:
        with (
            Telling(store, order.prefix, first) as telling,
            progress.bar("training", order.batches.steps, before.step) as bar,
        ):
            seen, shown = before, ""

            def told(step: str) -> None:
                nonlocal seen, shown
                if step != shown:
                    shown = step
                    telling.change(stage="training" if step == "train" else "loading")
                now = read_progress(work, order.eval_every)
                if step == "train":
                    logged = logged_step(work, order.batches.steps)
                    # Never back: evaluating at the end has a bar of its own.
                    now = replace(now, step=max(seen.step, now.step, logged))
                if now.step > seen.step:
                    bar.advance(now.step - seen.step)
                if now != seen:
                    telling.change(step=now.step, **looked(now.looks))
                    seen = now

            run_steps(commands, work, variables, told)
    finally:
        # What went wrong before is the better thing to say.
        with suppress(StoreError):
            store.write(f"{order.prefix}/{LOG}", log_tail(work, _KEPT_LOG))


def _keep(
    order: TrainingOrder,
    files: QadFiles,
    tokenizer: Sequence[Path],
    store: Store,
    progress: Progress,
    work: Workplace,
    path: Path,
) -> Trained:
    """Make the GGUF of what it exported; put both into the store."""
    from kldcloud.qad.modelopt.exported import published_files, student_gguf
    from kldcloud.qad.modelopt.running import read_progress

    compared = student_gguf(files.init.path, work.exported, path, activations=order.activations)
    progress.note(f"{compared:,} weights of the GGUF are what Model Optimizer exported")
    # Half of what another machine exported is no half of this.
    for info in list(store.list(f"{order.prefix}/{FOLDER}/")):
        store.delete(info.key)
    store.delete(f"{order.prefix}/student.gguf")
    for each in (*published_files(work.exported), *tokenizer):
        store.write_new_file(f"{order.prefix}/{FOLDER}/{each.name}", each)
    store.write_new_file(f"{order.prefix}/student.gguf", path)
    ended = read_progress(work, order.eval_every)
    done = Trained(ended.step, _of_the_student(ended.looks))
    store.write_new(f"{order.prefix}/{TRAINED}", canonical_json(asdict(done)))
    # The store has what counts; teacher, checkpoints and optimiser are many times as large.
    shutil.rmtree(work.root, ignore_errors=True)
    return done


def _of_the_student(looks: tuple[Look, ...]) -> tuple[Look, ...]:
    """The looks, the best of which is that of the exported checkpoint.

    transformers does not count the one before the first step: a student that only got worse is
    still the best of what came after.
    """
    best = best_of(looks)
    return looks[1:] if best is not None and best.step == 0 else looks


def _trained(store: Store, order: TrainingOrder) -> Trained | None:
    return read_record(store, f"{order.prefix}/{TRAINED}", Trained, limit=_MOST_BYTES)


def _fetch(store: Store, order: TrainingOrder, path: Path, progress: Progress) -> None:
    """The student of an earlier launch, from the store."""
    key = f"{order.prefix}/student.gguf"
    size = store.size(key)
    if path.exists() and path.stat().st_size == size:
        return
    if size is None:
        raise UserError(f"{store.uri} has no {key}", hint=f"delete {order.prefix}/{TRAINED} there")
    with (
        whole_file(path) as part,
        written(path),
        progress.bar(f"fetching {path.name}", size) as bar,
    ):
        complete_hashed(part, size, partial(store.read_into, key), bar.reach)
