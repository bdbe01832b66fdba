"""Training processes: Ray Train starts them, joins them, and starts all again if one dies.

What they do is in `kldcloud.qad`; what they have done is in the store, and nowhere else: a process
that comes back goes on from the last checkpoint there.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from kldcloud.clusters.local_ray import local_ray
from kldcloud.errors import EngineError

MOST_FAILURES: Final = 8
"""Times that the processes are started again, over a whole launch."""

Work = Callable[[int, int, str], None]
"""Called in each process with its rank, how many there are, and its torch device."""


@dataclass(frozen=True, slots=True)
class World:
    """The processes that train together.

    Attributes:
        processes: how many.
        gpus: whether each has a GPU.
    """

    processes: int
    gpus: bool


def train_here(world: World, work: Work) -> None:
    """Run `work` in every process of a world on this machine, until it ends well.

    Args:
        world: how many processes.
        work: travels to the processes, so a function of a module, plain arguments bound to it.

    Raises:
        EngineError: processes died too often, or Ray could not start them.
    """
    # V2 of Ray Train: V1 has no policy for processes that die. It is read when ray is imported.
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    with local_ray(world.processes, world.processes if world.gpus else 0):
        _fit(world, work)


def _fit(world: World, work: Work) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="kld-") as folder:
        trainer = TorchTrainer(
            _in_process,
            train_loop_config={"work": work, "gpus": world.gpus},
            scaling_config=ScalingConfig(num_workers=world.processes, use_gpu=world.gpus),
            run_config=RunConfig(
                name="qad",
                storage_path=folder,
                failure_config=FailureConfig(max_failures=MOST_FAILURES),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            lines = [each for each in str(error).splitlines() if each.strip()]
            raise EngineError(
                f"training processes died: {lines[-1][:300] if lines else type(error).__name__}",
                hint="the same command goes on from the last checkpoint",
            ) from error


def _in_process(config: dict[str, Any]) -> None:
    import ray.train

    context = ray.train.get_context()
    device = "cuda" if config["gpus"] else "cpu"
    config["work"](context.get_world_rank(), context.get_world_size(), device)
