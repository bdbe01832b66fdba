"""What training changes: parameters and AdamW averages, gathered for a checkpoint and set again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from kldcloud.errors import EngineError
from kldcloud.qad.checkpoints import Checkpoint, Tensors
from kldcloud.qad.sharding import like, whole
from kldcloud.qad.student import NORMS, Student
from kldcloud.spec.qad_job import TrainSpec

BETAS: Final = (0.9, 0.95)
_AVERAGES: Final = ("exp_avg", "exp_avg_sq")


class TrainedState:
    """The parameters of a student that train, with gradients of zero, and their optimiser.

    Args:
        student: whose groups they are; each process may have a part of every one.
        train: with which learning rates and decay.
    """

    def __init__(self, student: Student, train: TrainSpec) -> None:
        self._groups = student.groups
        self._optimizer = _optimizer(student, train)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """All of them, in a fixed order."""
        return list(self._named().values())

    def forget_gradients(self) -> None:
        """Set them to zero."""
        self._optimizer.zero_grad(set_to_none=False)

    def step(self, rate: float) -> None:
        """Change the parameters by their gradients.

        Args:
            rate: the share of the learning rates' heights.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = group["height"] * rate
        self._optimizer.step()

    def rates(self) -> Mapping[str, float]:
        """Learning rate of each group in the last step."""
        groups = self._optimizer.param_groups
        return {name: group["lr"] for name, group in zip(self._groups, groups, strict=True)}

    def whole(self, *, keep: bool) -> tuple[Tensors, Tensors]:
        """Weights and averages as a checkpoint has them; every process must ask for them.

        Args:
            keep: whether this process wants them. A GPU need not have room for them all: each is
                gathered alone, and kept in main memory.

        Returns:
            Both by name, of all processes together; empty where they are not kept.
        """
        state = self._optimizer.state
        named = self._named()
        averages = {
            f"{name}.{kind}": state[each][kind]
            for name, each in named.items()
            for kind in _AVERAGES
            if each in state
        }
        return _gathered(named, keep=keep), _gathered(averages, keep=keep)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Be as a checkpoint says.

        Raises:
            EngineError: it holds other tensors.
        """
        named = self._named()
        _check_names(checkpoint.weights, named)
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(like(checkpoint.weights[name], parameter))
        for name, parameter in named.items():
            averages = {kind: checkpoint.optimizer.get(f"{name}.{kind}") for kind in _AVERAGES}
            if all(each is not None for each in averages.values()):
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(checkpoint.progressed.step)),
                    **{
                        k: like(each, parameter) for k, each in averages.items() if each is not None
                    },
                }

    def _named(self) -> Mapping[str, torch.nn.Parameter]:
        return {name: each for group in self._groups.values() for name, each in group.items()}


def _gathered(tensors: Tensors, *, keep: bool) -> Tensors:
    found = {}
    for name, each in tensors.items():
        gathered = whole(each.detach())
        if keep:
            found[name] = gathered.cpu()
    return found


def _optimizer(student: Student, train: TrainSpec) -> torch.optim.AdamW:
    norms = train.lr if train.lr_norms is None else train.lr_norms
    groups: list[dict[str, Any]] = [
        {
            "params": list(named.values()),
            "height": norms if name == NORMS else train.lr,
            # Decay would pull a norm towards 0, which is no smaller model.
            "weight_decay": 0.0 if name == NORMS else train.weight_decay,
        }
        for name, named in student.groups.items()
    ]
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    return torch.optim.AdamW(groups, lr=train.lr, betas=BETAS)


def _check_names(found: Tensors, wanted: Tensors) -> None:
    """A checkpoint of this very run has what is trained; anything else was tampered with."""
    mine = {name: tuple(each.shape) for name, each in wanted.items()}
    if {name: tuple(each.shape) for name, each in found.items()} != mine:
        raise EngineError(
            "a checkpoint holds other tensors than those that are trained",
            hint="delete the run's checkpoints and launch the job again",
        )
