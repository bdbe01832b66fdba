"""Checkpoints: what was written comes back, and nothing else is believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kldcloud.errors import FormatError
from kldcloud.qad.checkpoints import Checkpoints
from kldcloud.qad.looks import Look, Progressed
from kldcloud.store import open_store

LOOKS = (Look(0, 0.5, 0.75), Look(5, 0.25, 0.875), Look(10, 0.3, 0.8))
WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "norm.weight": torch.ones(3)}
AVERAGES = {"a.weight.exp_avg": torch.full((2, 3), 0.125)}


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    checkpoints = Checkpoints(open_store(str(tmp_path)), "qad/x", "x")
    checkpoints.write(Progressed(10, LOOKS), WEIGHTS, AVERAGES)
    return checkpoints


def test_what_was_written_comes_back(kept: Checkpoints) -> None:
    assert kept.steps() == [10]
    found = kept.read(10)
    assert found.progressed == Progressed(10, LOOKS)
    assert found.progressed.best == LOOKS[1]
    for name, tensor in WEIGHTS.items():
        assert torch.equal(found.weights[name], tensor)
    assert torch.equal(found.optimizer["a.weight.exp_avg"], AVERAGES["a.weight.exp_avg"])
    assert kept.read(10, optimizer=False).optimizer == {}


def test_the_same_state_gives_the_same_bytes(kept: Checkpoints, tmp_path: Path) -> None:
    assert kept.steps() == [10]
    other = tmp_path / "other"
    again = Checkpoints(open_store(str(other)), "qad/x", "x")
    again.write(Progressed(10, LOOKS), dict(reversed(WEIGHTS.items())), AVERAGES)
    files = sorted((other / "qad").rglob("*.*"))
    assert len(files) == 3
    for path in files:
        assert path.read_bytes() == (tmp_path / path.relative_to(other)).read_bytes()


def test_one_that_is_whole_stays_though_another_launch_came_to_other_bits(
    kept: Checkpoints,
) -> None:
    others = {name: each + 1 for name, each in WEIGHTS.items()}
    kept.write(Progressed(10, LOOKS), others, {})
    found = kept.read(10)
    assert torch.equal(found.weights["a.weight"], WEIGHTS["a.weight"])
    assert found.optimizer.keys() == AVERAGES.keys()


def test_one_without_its_state_does_not_count_and_is_written_over(
    kept: Checkpoints, tmp_path: Path
) -> None:
    (tmp_path / "qad/x/checkpoints/00000010/state.json").unlink()
    (tmp_path / "qad/x/checkpoints/00000010/weights.safetensors").write_bytes(b"half")
    assert kept.steps() == []
    kept.write(Progressed(10, LOOKS), WEIGHTS, AVERAGES)
    assert torch.equal(kept.read(10).weights["a.weight"], WEIGHTS["a.weight"])


def test_only_those_that_are_wanted_are_kept(kept: Checkpoints, tmp_path: Path) -> None:
    for step in (15, 20, 25):
        kept.write(Progressed(step, LOOKS), WEIGHTS, AVERAGES)
    kept.keep({10, 25})
    assert kept.steps() == [10, 25]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 6


def change(tmp_path: Path, **fields: Any) -> None:
    path = tmp_path / "qad/x/checkpoints/00000010/state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"run": "y"}, "a checkpoint of another job, 'y'"),
        ({"step": 9}, "not a checkpoint of step 10"),
        ({"schema": "kldcloud.checkpoint/9"}, "not a checkpoint"),
        ({"objects": {}}, "does not say what its weights are"),
        ({"objects": {"weights": {"bytes": -1, "sha256": "0" * 64}}}, "does not say"),
        ({"looks": [{"step": 1}]}, "its evaluations are none"),
        ({"looks": 5}, "its evaluations are none"),
    ],
)
def test_a_state_of_something_else_is_refused(
    kept: Checkpoints, tmp_path: Path, fields: dict[str, Any], reason: str
) -> None:
    change(tmp_path, **fields)
    with pytest.raises(FormatError, match=reason):
        kept.read(10)


def test_damaged_tensors_are_refused(kept: Checkpoints, tmp_path: Path) -> None:
    path = tmp_path / "qad/x/checkpoints/00000010/weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"weights\.safetensors"):
        kept.read(10)


def test_what_only_has_the_right_digest_is_refused_too(kept: Checkpoints, tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "qad/x/checkpoints/00000010/weights.safetensors"
    data = b"\xff" * 64
    path.write_bytes(data)
    entry = {"bytes": 64, "sha256": hashlib.sha256(data).hexdigest()}
    change(tmp_path, objects={"weights": entry, "optimizer": entry})
    with pytest.raises(FormatError, match="not safetensors"):
        kept.read(10)
