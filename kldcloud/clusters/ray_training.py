"""Training processes: Ray Train starts them, joins them, and starts all again if one dies.

What they do is in `kldcloud.qad`; what they have done is in the store, and nowhere else: a process
that comes back goes on from the last checkpoint there. So Ray Train is told of no checkpoint, and
the folder that it wants for them is one of the driver's machine alone.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from kldcloud.errors import EngineError
from kldcloud.pipeline.machines import Machines, World

MOST_FAILURES: Final = 8
"""Times that the processes are started again, over a whole launch."""
MOST_WAITS: Final = 15
"""Minutes that Ray Train waits, over a whole launch, for machines that have gone to come back."""
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
        machines.room(world) as resources,
        tempfile.TemporaryDirectory(prefix="kld-", ignore_cleanup_errors=True) as folder,
    ):
        # In the main thread Ray Train would take Ctrl-C for itself, and keep it.
        fitting = _Fitting(world, resources, work, folder)
        fitting.start()
        fitting.join()
    if fitting.error is not None:
        lines = [each for each in str(fitting.error).splitlines() if each.strip()]
        raise EngineError(
            "training processes died: "
            f"{lines[-1][:300] if lines else type(fitting.error).__name__}",
            hint="the same command goes on from the last checkpoint",
        ) from fitting.error


class _Fitting(threading.Thread):
    """Ray Train at work.

    Attributes:
        error: once the thread has ended, why; None if it ended well.
    """

    def __init__(
        self, world: World, resources: Mapping[str, float], work: Work, folder: str
    ) -> None:
        super().__init__(daemon=True, name="training")
        self._world, self._resources, self._work = world, resources, work
        self._folder = folder
        self.error: Exception | None = None

    def run(self) -> None:
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        try:
            self._fit()
        except Exception as error:  # noqa: BLE001 - the thread's waiter raises it
            self.error = error

    def _fit(self) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        world = self._world
        TorchTrainer(
            _in_process,
            train_loop_config={"work": self._work, "gpus": world.gpus},
            torch_config=TorchConfig(timeout_s=_PATIENCE_SECONDS),
            scaling_config=ScalingConfig(
                num_workers=world.processes,
                use_gpu=world.gpus,
                resources_per_worker=dict(self._resources),
            ),
            run_config=RunConfig(
                name="qad",
                storage_path=self._folder,
                failure_config=FailureConfig(
                    max_failures=MOST_FAILURES, controller_failure_limit=MOST_WAITS
                ),
            ),
        ).fit()


def _in_process(config: dict[str, Any]) -> None:
    import ray.train

    context = ray.train.get_context()
    device = "cuda" if config["gpus"] else "cpu"
    config["work"](context.get_world_rank(), context.get_world_size(), device)
