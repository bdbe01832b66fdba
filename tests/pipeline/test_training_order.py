"""What decides the id of a training run, and what its driver says of one that was refused."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kldcloud.clusters import ray_training
from kldcloud.clusters.local_ray import LocalMachines
from kldcloud.errors import KldcloudError, UserError
from kldcloud.models.gguf_header import read_gguf_header
from kldcloud.pipeline.machines import World
from kldcloud.pipeline.model_files import ModelFile
from kldcloud.pipeline.qad_files import QadFiles
from kldcloud.pipeline.qad_texts import QadTexts
from kldcloud.pipeline.qad_training import train_to_the_end, training_order
from kldcloud.qad.progress_file import read_progress
from kldcloud.qad.training_order import TrainingOrder
from kldcloud.qad.training_tokens import write_tokens
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.qad_job import QadJob
from kldcloud.store import open_store
from tests.pipeline.sweeps import Notes
from tests.qad.small_training import order, tiny_init, tiny_teacher, training_tokens


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_teacher(tmp_path_factory.mktemp("teacher"), layers=1)


def ordered(teacher: Path, *, gpus: bool, **train: object) -> TrainingOrder:
    job = QadJob.model_validate(
        {
            "kind": "qad",
            "name": "demo",
            "teacher": "teacher.gguf",
            "student": {"init": "init.gguf"},
            "data": {"text": "a.txt", "context": 32},
            "train": train,
        }
    )
    model = ModelFile("t", teacher.name, teacher, "0" * 64, read_gguf_header(teacher))
    chunks = training_tokens()
    file = write_tokens([chunks.ravel()], 32, "all", bos=None)
    texts = QadTexts(file, chunks[:3], teacher.with_name("no proof"))
    files = QadFiles(model, (), model)
    found = training_order(job, ClusterSpec(), World(1, 1, gpus), files, texts)
    file.path.unlink()
    return found


def test_a_run_on_gpus_is_another_unless_the_precision_is_said(teacher: Path) -> None:
    here, there = (ordered(teacher, gpus=gpus) for gpus in (False, True))
    assert (here.train.precision, there.train.precision) == ("float32", "bfloat16")
    assert here.run != there.run
    for precision, same in (("float32", here), ("bfloat16", there)):
        said = [ordered(teacher, gpus=gpus, precision=precision).run for gpus in (False, True)]
        assert said == [same.run] * 2


def in_this_process(_machines: object, _world: World, work: ray_training.Work) -> None:
    """What Ray Train does with a process that fails: it starts another."""
    with contextlib.suppress(KldcloudError):
        work(0, 1, "cpu")
    work(0, 1, "cpu")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "was changed or damaged"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_a_damaged_checkpoint_is_told_and_the_hint_helps(
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], object],
    said: str,
) -> None:
    monkeypatch.setattr(ray_training, "train", in_this_process)
    store, world = open_store(str(tmp_path)), World(1, 1, gpus=False)
    whole = order(teacher, tiny_init(teacher), store)

    def trained() -> bytes:
        train_to_the_end(whole, store, LocalMachines(), world, Notes())
        return store.read(f"{whole.prefix}/checkpoints/00000010/weights.safetensors")

    quiet = trained()
    folder = tmp_path / whole.prefix / "checkpoints"
    shutil.rmtree(folder / "00000010")
    damage(folder / "00000005" / "weights.safetensors")
    hint = "delete that folder, and the same command goes on from the checkpoint before it"
    with pytest.raises(UserError, match=f"00000005/weights.safetensors: {said}; {hint}"):
        trained()
    progress = read_progress(store, whole.prefix)
    assert progress is not None
    assert progress.stage == "failed"
    assert said in progress.error
    shutil.rmtree(folder / "00000005")
    assert trained() == quiet
