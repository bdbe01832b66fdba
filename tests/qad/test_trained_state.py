"""What trains, gathered for a checkpoint: by the process that keeps it, a tensor at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kldcloud.qad import trained_state
from kldcloud.qad.checkpoints import Checkpoint
from kldcloud.qad.looks import Progressed
from kldcloud.qad.pair import load_pair
from kldcloud.qad.trained_state import TrainedState
from kldcloud.spec.qad_job import TrainSpec

pytestmark = pytest.mark.usefixtures("one_thread")


def stepped(teacher: Path, init: Path) -> TrainedState:
    """After one step along made-up gradients."""
    state = TrainedState(load_pair(teacher, init, TrainSpec()).student, TrainSpec())
    for at, parameter in enumerate(state.parameters):
        parameter.grad = torch.full_like(parameter, at + 1.0)
    state.step(0.5)
    return state


def test_only_the_process_that_writes_holds_whole_tensors(
    teacher: Path, init: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    state = stepped(teacher, init)

    def whole(tensor: torch.Tensor) -> torch.Tensor:
        asked.append(tensor.numel())
        return tensor

    monkeypatch.setattr(trained_state, "whole", whole)
    assert state.whole(keep=False) == ({}, {})
    # Gathering is done together, so the others are asked for as much, in the same order.
    others, asked[:] = list(asked), []
    weights, averages = state.whole(keep=True)
    assert asked == others
    assert len(weights) == len(state.parameters)
    assert len(averages) == 2 * len(weights)
    assert {each.device.type for each in (*weights.values(), *averages.values())} == {"cpu"}


def test_what_was_gathered_can_be_set_again(teacher: Path, init: Path) -> None:
    state = stepped(teacher, init)
    # As a file has them: they change with neither of the two.
    weights, averages = (
        {name: each.clone() for name, each in found.items()} for found in state.whole(keep=True)
    )
    again = TrainedState(load_pair(teacher, init, TrainSpec()).student, TrainSpec())
    again.restore(Checkpoint(Progressed(1, ()), weights, averages))
    for one, other in zip(state.parameters, again.parameters, strict=True):
        assert torch.equal(one, other)
        other.grad = torch.ones_like(other)
        one.grad = torch.ones_like(one)
    for each in (state, again):
        each.step(1.0)
    for one, other in zip(state.parameters, again.parameters, strict=True):
        assert torch.equal(one, other)
    assert set(state.rates().values()) == {TrainSpec().lr}
