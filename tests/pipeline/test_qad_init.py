"""A given init is compared with its teacher before anything is hashed, sent or trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kldcloud.errors import FormatError
from kldcloud.pipeline.launches import ship
from kldcloud.pipeline.progress import Silent
from kldcloud.pipeline.qad_files import qad_files
from kldcloud.pipeline.qad_teacher import find_teacher
from kldcloud.pipeline.sources import HERE
from kldcloud.spec.qad_job import QadJob
from kldcloud.store.folder import FolderStore
from tests.golden.cases import TEXT
from tests.pipeline.sweeps import Notes
from tests.qad.small_training import tiny_init, tiny_teacher, training_tokens


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_teacher(tmp_path_factory.mktemp("teacher"), layers=1, feed_forward=256)


def job(teacher: Path, init: Path, **changes: Any) -> QadJob:
    return QadJob.model_validate(
        {
            "kind": "qad",
            "name": "tiny",
            "teacher": str(teacher),
            "student": {"init": str(init)},
            "data": {"text": str(TEXT), "context": 64},
            **changes,
        }
    )


def found(wanted: QadJob, told: Notes) -> Path:
    teacher = find_teacher(wanted, told, HERE)
    return qad_files(wanted, teacher, training_tokens(), told, HERE).init.path


def swapped(path: Path, target: Path, one: bytes, other: bytes) -> Path:
    """A model two of whose tokens have changed places in the vocabulary."""
    data, length = path.read_bytes(), len(one).to_bytes(8, "little")
    assert data.count(length + one) == data.count(length + other) == 1
    at, there = data.index(length + one) + 8, data.index(length + other) + 8
    changed = bytearray(data)
    changed[at : at + len(one)], changed[there : there + len(one)] = other, one
    target.write_bytes(changed)
    return target


def test_a_quantised_file_of_the_teacher_is_taken(teacher: Path) -> None:
    init = tiny_init(teacher)
    assert found(job(teacher, init), Notes()) == init


def test_one_of_another_shape_is_refused(teacher: Path, tmp_path: Path) -> None:
    init = tiny_init(tiny_teacher(tmp_path, layers=1, feed_forward=512))
    said = r"^student\.init: .*its model\.layers\.0\.mlp\.gate_proj\.weight is 512 x 256, the teach"
    told, store = Notes(), FolderStore(tmp_path / "store")
    with pytest.raises(FormatError, match=said):
        found(job(teacher, init), told)
    assert not [each for each in told.bars if init.name in each and each.startswith("hashing")]
    with pytest.raises(FormatError, match=said):
        ship(job(teacher, init), store, Silent())
    assert not list(store.list(""))


def test_a_type_that_cannot_be_trained_is_named_with_its_tensor(teacher: Path) -> None:
    init = tiny_init(teacher, "IQ4_NL")
    said = r"^student\.init: .*tensor '\S+' is IQ4_NL, which torch cannot be given"
    with pytest.raises(FormatError, match=said):
        found(job(teacher, init), Notes())
    # A teacher of that type is converted first.
    converted = find_teacher(job(init, teacher), Notes(), HERE).header
    assert "IQ4_NL" not in {each.type_name for each in converted.tensors.values()}


def test_one_with_another_vocabulary_is_refused(teacher: Path, tmp_path: Path) -> None:
    init = swapped(tiny_init(teacher), tmp_path / "init.gguf", b"he", b"in")
    said = (
        r"^student\.init: .*init\.gguf: cuts data\.text differently: token [0-9,]+ is \d+ 'in' for"
    )
    with pytest.raises(FormatError, match=said):
        found(job(teacher, init), Notes())


def test_a_teacher_of_another_architecture_is_refused_before_it_is_quantised(
    teacher: Path, tmp_path: Path
) -> None:
    other = tmp_path / "gpt.gguf"
    other.write_bytes(teacher.read_bytes().replace(b"llama", b"gemma", 1))
    wanted = job(other, other, student={"init": {"quantize": "Q4_0"}})
    told = Notes()
    with pytest.raises(FormatError, match=r"^teacher: .*cannot train the architecture 'gemma'"):
        find_teacher(wanted, told, HERE)
    assert not [each for each in told.bars if each.startswith("hashing")]
