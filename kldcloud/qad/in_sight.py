"""Training in sight of people: the first process says how far it is, and keeps charts of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kldcloud.pipeline.life import new_attempt
from kldcloud.qad.checkpoints import Checkpoints
from kldcloud.qad.metrics import Metrics
from kldcloud.qad.progress_file import Telling, first_progress, looked
from kldcloud.qad.training import StepDone, Training
from kldcloud.qad.training_order import TrainingOrder
from kldcloud.store.base import Store


@contextmanager
def in_sight(
    order: TrainingOrder, store: Store
) -> Iterator[Callable[[Training], Iterator[StepDone]]]:
    """Say that models load, and then, of the training that the caller makes, each step.

    Yields:
        What takes the place of `Training.steps`.
    """
    checkpoints = Checkpoints(store, order.prefix, order.run)
    kept = checkpoints.steps()
    done = checkpoints.progressed(kept[-1]) if kept else None
    first = first_progress(store, order, done)
    with Telling(store, order.prefix, first) as telling:

        def warn(text: str) -> None:
            telling.change(warning=text)

        with Metrics(store, order.prefix, new_attempt(), warn) as metrics:
            yield lambda training: _steps(training, order.tokens_a_step, telling, metrics)


def _steps(
    training: Training, tokens: int, telling: Telling, metrics: Metrics
) -> Iterator[StepDone]:
    training.first_look()
    first, began = training.progressed, time.monotonic()
    telling.change(stage="training", step=first.step, **looked(first.looks))
    metrics.look(first.looks[-1])
    metrics.keep()
    for done in training.steps():
        rate = tokens * (done.step - first.step) / (time.monotonic() - began)
        looks = looked(training.progressed.looks)
        telling.change(step=done.step, kld=done.kld, tokens_per_second=rate, **looks)
        metrics.step(done, rate)
        if done.kept:
            metrics.keep()
        yield done
