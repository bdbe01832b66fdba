"""The learning rate from step to step."""

from __future__ import annotations

import math

from kldcloud.spec.qad_job import TrainSpec


def rate_at(step: int, total: int, train: TrainSpec) -> float:
    """Share of the learning rate at a step, counted from 0.

    It rises in a line over the warm-up, whose first step already moves; then it stays, or falls as
    half a cosine to `final_lr` (Loshchilov and Hutter, arXiv:1608.03983, without restarts).
    """
    warm = math.ceil(train.warmup * total)
    if step < warm:
        return (step + 1) / (warm + 1)
    if train.schedule == "constant":
        return 1.0
    done = (step - warm) / max(total - warm, 1)
    return train.final_lr + (1 - train.final_lr) * 0.5 * (1 + math.cos(math.pi * done))
