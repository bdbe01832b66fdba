"""What decides the id of a training run: the precision that it really has, among others."""

from __future__ import annotations

from pathlib import Path

import pytest

from kldcloud.models.gguf_header import read_gguf_header
from kldcloud.pipeline.machines import World
from kldcloud.pipeline.model_files import ModelFile
from kldcloud.pipeline.qad_files import QadFiles
from kldcloud.pipeline.qad_texts import QadTexts
from kldcloud.pipeline.qad_training import training_order
from kldcloud.qad.training_order import TrainingOrder
from kldcloud.qad.training_tokens import write_tokens
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.qad_job import QadJob
from tests.qad.small_training import tiny_teacher, training_tokens


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
