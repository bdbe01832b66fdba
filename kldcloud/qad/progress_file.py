"""progress.json: how far a training run is, for people, and the sign of life of who works on it.

The first training process keeps it up to date while it trains, the driver before and after; it
decides nothing, and a store that is away for a moment costs a look.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from kldcloud.errors import KldcloudError
from kldcloud.pipeline.pulse import Pulse
from kldcloud.qad.looks import Look, Progressed, best_of
from kldcloud.staging.stage import canonical_json
from kldcloud.store.base import Store

if TYPE_CHECKING:
    from kldcloud.qad.training_order import TrainingOrder

PROGRESS: Final = "progress.json"
WORKING: Final = ("loading", "training", "measuring")
_MOST_BYTES: Final = 64 << 10
_MOST: Final = 2.0**53

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """How far a run is.

    Attributes:
        stage: loading, training, measuring (after training: the file and its sweep), or how it
            ended: finished, failed or stopped.
        step: steps done.
        steps: in all, unless patience ends before.
        tokens_a_step: of a whole step.
        started: Unix time in seconds of the first launch.
        moved: Unix time in seconds of the last step, or of the last change of the stage.
        seen: Unix time in seconds of this sign of life.
        kld: of the last step's tokens, nats; None if nobody knows.
        start: the look before the first step; None before it.
        latest: the latest look; None before the first.
        best: the look that lost least; None before the first.
        tokens_per_second: of this launch; None before its first step.
        error: why it ended, in one line.
        warning: what did not work out on the way, and ends nothing.
    """

    stage: str
    step: int
    steps: int
    tokens_a_step: int
    started: float
    moved: float
    seen: float
    kld: float | None = None
    start: Look | None = None
    latest: Look | None = None
    best: Look | None = None
    tokens_per_second: float | None = None
    error: str = ""
    warning: str = ""


class Telling:
    """Keeps progress.json up to date: soon after something changed, and every few seconds.

    Args:
        store: where the run is.
        prefix: of its keys.
        first: what is known at the start.
    """

    def __init__(self, store: Store, prefix: str, first: TrainingProgress) -> None:
        self._store, self._key = store, f"{prefix}/{PROGRESS}"
        self._lock = threading.Lock()
        self._progress = first
        self._pulse = Pulse(self._write)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._pulse.end()

    def change(self, **facts: Any) -> None:  # noqa: ANN401 - fields of `TrainingProgress`
        """Something was done: put it down, and write it soon."""
        with self._lock:
            self._progress = replace(self._progress, moved=time.time(), **facts)
        self._pulse.now()

    def _write(self) -> None:
        with self._lock:
            progress = replace(self._progress, seen=time.time())
        _put(self._store, self._key, progress)


def first_progress(store: Store, order: TrainingOrder, done: Progressed | None) -> TrainingProgress:
    """What is known while models load.

    Args:
        store: where the run is, which an earlier launch may have begun.
        order: of the run.
        done: as its last checkpoint says; None without one.
    """
    now, step = time.time(), done.step if done else 0
    before = read_progress(store, order.prefix)
    return TrainingProgress(
        "loading",
        step,
        order.batches.steps,
        order.tokens_a_step,
        started=before.started if before else now,
        moved=now,
        seen=now,
        kld=before.kld if before and before.step == step else None,
        **looked(done.looks if done else ()),
    )


def looked(looks: tuple[Look, ...]) -> dict[str, Any]:
    """The fields of `TrainingProgress` that looks decide."""
    ends = (looks[0], looks[-1]) if looks else (None, None)
    return {"start": ends[0], "latest": ends[1], "best": best_of(looks)}


def tell(store: Store, prefix: str, progress: TrainingProgress) -> None:
    """Write it once, if the store lets us."""
    with suppress(KldcloudError):
        _put(store, f"{prefix}/{PROGRESS}", progress)


@contextmanager
def end_told(store: Store, prefix: str) -> Iterator[None]:
    """A block whose failure the run's progress shows."""
    try:
        yield
    except BaseException as error:
        if found := read_progress(store, prefix):
            # A person's Ctrl-C is no failure.
            known = isinstance(error, Exception)
            said = str(error) if isinstance(error, KldcloudError) else type(error).__name__
            stage = "failed" if known else "stopped"
            tell(store, prefix, replace(found, stage=stage, error=said, seen=time.time()))
        raise


@contextmanager
def measuring_told(store: Store, prefix: str) -> Iterator[None]:
    """The work after training, in which the run stays alive."""
    found = read_progress(store, prefix)
    with end_told(store, prefix):
        if found is None:
            yield
            return
        now = time.time()
        shown = replace(found, stage="measuring", moved=now, tokens_per_second=None, error="")
        with Telling(store, prefix, shown) as telling:
            yield
            telling.change(stage="finished")


def read_progress(store: Store, prefix: str) -> TrainingProgress | None:
    """How far a run is; None if nothing is known."""
    return read_record(store, f"{prefix}/{PROGRESS}", TrainingProgress, limit=_MOST_BYTES)


def read_record(store: Store, key: str, kind: type[Record], *, limit: int) -> Record | None:
    """A small JSON object as a dataclass; None if it is not there, or not one.

    Whoever can write to the store may write nonsense here: it is passed over.

    Args:
        store: where it is.
        key: the object.
        kind: the dataclass.
        limit: bytes of it at most.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        found = TypeAdapter(kind).validate_json(store.read(key, limit=limit))
    except (KldcloudError, ValidationError):
        return None
    return found if _plausible(found) else None


def _plausible(value: Any) -> bool:  # noqa: ANN401 - a record, or anything in one
    if isinstance(value, int | float):
        # A divergence near 0 may be below it by what rounding took.
        return -1 <= value <= _MOST
    if isinstance(value, tuple):
        return all(map(_plausible, value))
    if is_dataclass(value):
        return all(_plausible(getattr(value, each.name)) for each in fields(value))
    return True


def _put(store: Store, key: str, progress: TrainingProgress) -> None:
    store.write(key, canonical_json(asdict(progress)))
