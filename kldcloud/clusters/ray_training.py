"""Training processes: Ray Train starts them, joins them, and starts all again if one dies.

What they do is in `kldcloud.qad`; what they have done is in the store, and nowhere else: a process
that comes back goes on from the last checkpoint there. So Ray Train is told of no checkpoint, and
the folder that it wants for them is one of the driver's machine alone.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from kldcloud.errors import EngineError
from kldcloud.pipeline.machines import Machines, World

MOST_FAILURES: Final = 8
"""Times that the processes are started again, over a whole launch."""
MOST_WAITS: Final = 15
"""Minutes that Ray Train waits, over a whole launch, for machines that have gone to come back."""
_LONGEST: Final = 300
_OUR_WORDS: Final = re.compile(r"^kldcloud\.\S+Error: (.+)")
_PATIENCE_SECONDS: Final = 7200
"""How long a process may wait for another: one may fetch a model that the other one has. It is
Ray that notices the dead."""

Work = Callable[[int, int, str], None]
"""Called in each process with its rank, how many there are, and its torch device."""


def train(machines: Machines, world: World, work: Work) -> None:
    """Run `work` in every process of a world, until it ends well in all of them.

    Args:
        machines: where they run.
        world: how many there are.
        work: travels to the processes, so a function of a module, plain arguments bound to it.

    Raises:
        EngineError: processes died too often, or Ray could not start them.
    """
    with (
        # Removed once nobody can write to it any more.
        tempfile.TemporaryDirectory(prefix="kld-", ignore_cleanup_errors=True) as folder,
        machines.room(world) as resources,
    ):
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # Not in this process: here Ray Train would take Ctrl-C for itself, and in a thread it
        # would still be asking Ray for news while Ray ends, for which Ray ends the process.
        fitting = ray.remote(_fit).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
        try:
            ray.get(fitting.remote(world, dict(resources), work, folder))
        except Exception as error:
            raise EngineError(
                f"training processes died: {_said(error)}",
                hint="the same command goes on from the last checkpoint",
            ) from error


def _said(error: Exception) -> str:
    """What Ray says of a death, less its advice about logs that go with Ray's own folder."""
    lines = [each for each in str(error).splitlines() if each.strip()]
    if not lines:
        return type(error).__name__
    if ours := _OUR_WORDS.search(lines[-1]):
        return ours[1].split("; ")[0]
    return lines[-1].split(". ")[0][:_LONGEST]


def _fit(world: World, resources: dict[str, float], work: Work, folder: str) -> None:
    """Ray Train at work, until training has ended."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    TorchTrainer(
        _in_process,
        train_loop_config={"work": work, "gpus": world.gpus},
        torch_config=TorchConfig(timeout_s=_PATIENCE_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=world.processes,
            use_gpu=world.gpus,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name="qad",
            storage_path=folder,
            failure_config=FailureConfig(
                max_failures=MOST_FAILURES, controller_failure_limit=MOST_WAITS
            ),
        ),
    ).fit()


def _in_process(config: dict[str, Any]) -> None:
    import ray.train

    # Ray Train has made this a folder in Ray's own: what a killed process leaves goes with that.
    tempfile.tempdir = str(Path.cwd())
    context = ray.train.get_context()
    device = "cuda" if config["gpus"] else "cpu"
    config["work"](context.get_world_rank(), context.get_world_size(), device)
