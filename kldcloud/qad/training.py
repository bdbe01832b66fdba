"""The training loop: forward KL from a frozen teacher, one process of `world` at a time.

Every process holds teacher and student, or its part of both, and sees its share of a step's chunks;
gradients are summed over all of them before AdamW. What decides a bit is in the order of chunks, in
the checkpoint and in the number of processes: on CPUs, a run that was killed ends in the weights of
one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed

from kldcloud.divergence.linear.side import exact_products
from kldcloud.errors import EngineError
from kldcloud.pipeline.sources import local_copy
from kldcloud.qad.calibration import CALIBRATION_CHUNKS, calibration
from kldcloud.qad.checkpoints import Checkpoints
from kldcloud.qad.looks import Look, Progressed
from kldcloud.qad.loss import OutputHead, kld_sum, token_kld
from kldcloud.qad.pair import load_pair
from kldcloud.qad.precision import COMPUTED_IN, narrow, recompute
from kldcloud.qad.schedule import rate_at
from kldcloud.qad.sharding import check_even, shard_pair, whole
from kldcloud.qad.student import hidden_states, output_head
from kldcloud.qad.trained_state import TrainedState
from kldcloud.qad.training_order import TrainingOrder, is_over
from kldcloud.qad.training_tokens import Tokens, open_tokens
from kldcloud.store.base import Store


@dataclass(frozen=True, slots=True)
class StepDone:
    """What one step came to.

    Attributes:
        step: steps done.
        kld: mean KL divergence of its tokens before it, nats.
        grad_norm: of the gradient, before it was clipped.
        rates: learning rate of each group that trains.
        look: the evaluation after it, if there was one.
        kept: whether its checkpoint was written.
    """

    step: int
    kld: float
    grad_norm: float
    rates: Mapping[str, float]
    look: Look | None
    kept: bool


class DivergedError(EngineError):
    """A loss or gradient that is not a number: nothing good can follow."""


class Training:
    """One process's part of a training run; its state is where the last checkpoint left it.

    Args:
        order: what to do.
        store: where checkpoints are, and models that are not on this machine.
        rank: which process this is.
        world: how many there are.
        device: where the models go.
        sharded: spread both models over the processes instead of keeping them whole in each.

    Raises:
        UserError: a step's chunks cannot be dealt out evenly, which sharded processes need.
    """

    def __init__(
        self,
        order: TrainingOrder,
        store: Store,
        *,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        sharded: bool = False,
    ) -> None:
        self._order = order
        self._rank, self._world, self._device = rank, world, device
        self._sharded = sharded
        self._checkpoints = Checkpoints(store, order.prefix, order.run)
        self._tokens = open_tokens(order.tokens, store)
        calibrate = None
        if order.activations:
            calibrate = calibration(
                store, order.prefix, self._tensor(self._tokens[:CALIBRATION_CHUNKS])
            )
        teacher, init = (local_copy(each, store, _silent) for each in (order.teacher, order.init))
        self._pair = load_pair(teacher, init, order.train, device, calibrate)
        train = order.train.on(gpus=torch.device(device).type == "cuda")
        self._dtype = COMPUTED_IN[train.precision]
        if self._dtype == torch.bfloat16:
            narrow(self._pair.teacher)
            narrow(self._pair.student.model)
        if train.recompute:
            recompute(self._pair.student.model)
        if sharded:
            check_even(order.train, world)
            self._pair = shard_pair(self._pair)
        self._state = TrainedState(self._pair.student, order.train)
        self._teacher_head = output_head(self._pair.teacher, self._dtype)
        self._progressed = Progressed(0, ())
        self._resume()

    @property
    def progressed(self) -> Progressed:
        """How far it is."""
        return self._progressed

    def first_look(self) -> None:
        """Evaluate before the first step, unless that was done."""
        if not self._progressed.looks:
            self._progressed = Progressed(0, (self._look(0),))
            self._write()

    def steps(self) -> Iterator[StepDone]:
        """Train to the end, or until patience ends; yields after each step.

        A checkpoint is written at each look, as the best of them is what is exported.

        Raises:
            DivergedError: a loss or gradient is not finite, on held-out text too; the last
                checkpoint stays.
        """
        self.first_look()
        while not is_over(self._progressed, self._order):
            yield self.step()

    def step(self) -> StepDone:
        """Train one step; `steps` has what belongs before the first and after the last.

        Raises:
            DivergedError: as `steps`.
        """
        number, total = self._progressed.step, self._order.batches.steps
        rate = rate_at(number, total, self._order.train)
        kld, norm = self._accumulate(number)
        if not (math.isfinite(kld) and math.isfinite(norm)):
            raise self._diverged(
                f"the loss is {kld} and its gradient {norm} at step {number + 1} of {total}"
            )
        self._state.step(rate)
        done, looks, look = number + 1, self._progressed.looks, None
        if done % self._order.eval_every == 0 or done == total:
            look = self._look(done)
            looks = (*looks, look)
        self._progressed = Progressed(done, looks)
        kept = look is not None or done % self._order.checkpoint_every == 0
        if kept:
            self._write()
        return StepDone(done, kld, norm, self._state.rates(), look, kept)

    @exact_products()
    def _accumulate(self, number: int) -> tuple[float, float]:
        """Gradients of one step, summed over all processes and clipped: mean loss and norm."""
        order = self._order
        chosen = order.batches.step(number)
        count = len(chosen) * order.tokens.context
        mine = chosen[self._rank :: self._world]
        self._state.forget_gradients()
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for at in range(0, len(mine), order.train.micro_batch):
            tokens = self._tensor(self._tokens[mine[at : at + order.train.micro_batch]])
            with torch.no_grad():
                wanted = hidden_states(self._pair.teacher, tokens, self._dtype)
            states = hidden_states(self._pair.student.model, tokens, self._dtype)
            found = kld_sum(states, self._student_head(), wanted, self._teacher_head)
            # Sharded gradients come back as means over the processes; sums are wanted.
            scale = self._world if self._sharded else 1
            (scale * found.total / count).backward()  # type: ignore[no-untyped-call]
            total += found.total.detach()
        parameters = self._state.parameters
        if self._world > 1:
            distributed.all_reduce(total)
            if not self._sharded:
                for each in parameters:
                    distributed.all_reduce(each.grad)
        norm = torch.nn.utils.clip_grad_norm_(parameters, order.train.clip)
        return float(total) / count, float(whole(norm))

    @torch.no_grad()
    @exact_products()
    def _look(self, step: int) -> Look:
        """Evaluate on held-out chunks, at the positions that a sweep scores."""
        chunks = self._order.heldout
        first = chunks.shape[1] // 2
        kld, same, count = 0.0, 0, 0
        # Every process evaluates as often as any other: sharded ones do it together.
        for at in range(0, len(chunks), self._world):
            mine = at + self._rank
            tokens = self._tensor(chunks[mine % len(chunks)][None])
            wanted = hidden_states(self._pair.teacher, tokens, self._dtype)[:, first:-1]
            states = hidden_states(self._pair.student.model, tokens, self._dtype)[:, first:-1]
            if mine >= len(chunks):
                continue
            found = token_kld(states, self._student_head(), wanted, self._teacher_head)
            kld += float(found.kld.sum(dtype=torch.float64))
            same += int(found.same_top.sum())
            count += found.kld.numel()
        sums = torch.tensor([kld, same, count], dtype=torch.float64, device=self._device)
        if self._world > 1:
            distributed.all_reduce(sums)
        kld, same, count = sums.tolist()
        if not math.isfinite(kld):
            after = f"after step {step} of {self._order.batches.steps}" if step else "at the start"
            raise self._diverged(f"the loss on held-out text is {kld} {after}")
        return Look(step, kld / count, same / count)

    def _student_head(self) -> OutputHead:
        return output_head(self._pair.student.model, self._dtype)

    def _tensor(self, chunks: Tokens) -> torch.Tensor:
        return torch.from_numpy(chunks.astype(np.int64)).to(self._device)

    def _diverged(self, message: str) -> DivergedError:
        """The error, with what is left to go by: a checkpoint, or else the file to blame."""
        if kept := self._checkpoints.steps():
            hint = f"the checkpoint of step {kept[-1]} is good; try a lower train.lr"
            return DivergedError(message, hint=hint)
        models = {"teacher": self._pair.teacher, "init": self._pair.student.model}
        for model, loaded in models.items():
            for name, parameter in loaded.named_parameters():
                if not torch.isfinite(whole(parameter)).all():
                    at_fault = f"{name} of the {model} has weights that are no finite numbers"
                    return DivergedError(f"{message}: {at_fault}", hint="make that file again")
        return DivergedError(message, hint="try the teacher and the init in llama.cpp")

    def _write(self) -> None:
        weights, averages = self._state.whole(keep=self._rank == 0)
        if self._rank == 0:
            self._checkpoints.write(self._progressed, weights, averages)
            self._forget_older()
        if self._world > 1:
            distributed.barrier()

    def _forget_older(self) -> None:
        """Delete checkpoints that nobody needs; what is ahead of us is another launch's."""
        found, best = self._checkpoints.steps(), self._progressed.best
        behind = [each for each in found if each <= self._progressed.step]
        ahead = found[len(behind) :]
        newest = behind[-self._order.keep :]
        self._checkpoints.keep({*ahead, *newest, *([best.step] if best else [])})

    def _resume(self) -> None:
        if found := self._checkpoints.steps():
            checkpoint = self._checkpoints.read(found[-1])
            self._state.restore(checkpoint)
            self._progressed = checkpoint.progressed


def _silent(_done: int, _total: int) -> None:
    """Tell nobody how far a download is."""
