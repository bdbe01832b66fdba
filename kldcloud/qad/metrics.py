"""What TensorBoard shows of a training run: event files, written here and copied to the store.

They are for people who look on, and no part of what a run is: if they cannot be written, training
goes on without them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from kldcloud.qad.looks import Look
from kldcloud.store.base import Store

if TYPE_CHECKING:
    from kldcloud.qad.training import StepDone

FOLDER: Final = "tensorboard"
_LONGEST: Final = 200


class Metrics:
    """Event files of one training process, in a folder of their own in the store.

    Args:
        store: where the run is.
        prefix: of its keys.
        attempt: an id that no other process has; later ones sort after earlier ones.
        warn: told once what went wrong, after which nothing more is written.
    """

    def __init__(
        self, store: Store, prefix: str, attempt: str, warn: Callable[[str], None]
    ) -> None:
        self._store, self._prefix = store, f"{prefix}/{FOLDER}/{attempt}"
        self._warn = warn
        self._folder = tempfile.TemporaryDirectory(prefix="kld-", ignore_cleanup_errors=True)
        self._works = True
        self._try(self._open)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.keep()
        self._try(self._close)
        self._folder.cleanup()

    def look(self, look: Look) -> None:
        """Note an evaluation on held-out text."""
        scalars = {"heldout/kld": look.kld}
        if look.same_top is not None:
            scalars["heldout/same_top"] = look.same_top
        self._note(look.step, scalars)

    def step(self, done: StepDone, tokens_per_second: float) -> None:
        """Note a step, and the look after it if there was one."""
        scalars = {
            "train/loss": done.kld,
            "train/grad_norm": done.grad_norm,
            "train/tokens_per_second": tokens_per_second,
        }
        scalars |= {f"lr/{name}": rate for name, rate in done.rates.items()}
        self._note(done.step, scalars)
        if done.look is not None:
            self.look(done.look)

    def keep(self) -> None:
        """Copy what was noted to the store."""
        self._try(self._upload)

    def _note(self, step: int, scalars: Mapping[str, float]) -> None:
        def add() -> None:
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)

        self._try(add)

    def _open(self) -> None:
        # Imports tensorboard, which may be missing.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(self._folder.name)

    def _close(self) -> None:
        self._writer.close()

    def _upload(self) -> None:
        self._writer.flush()
        for path in sorted(Path(self._folder.name).iterdir()):
            self._store.write(f"{self._prefix}/{path.name}", path.read_bytes())

    def _try(self, act: Callable[[], None]) -> None:
        if not self._works:
            return
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whatever it is, training is worth more
            self._works = False
            with suppress(Exception):
                self._warn(f"no charts for TensorBoard: {_said(error)}")


def _said(error: Exception) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:_LONGEST]}" if words else type(error).__name__
