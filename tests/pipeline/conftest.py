"""Fixtures of the pipeline's tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from kldcloud.clusters import local_ray as rooms
from kldcloud.clusters.local_ray import local_ray

MOST_WORKERS = 3


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """One real Ray for all sweeps of a module: starting and ending it is other tests' subject."""
    with local_ray(MOST_WORKERS), pytest.MonkeyPatch.context() as patch:
        patch.setattr(rooms, "local_ray", lambda _workers, _gpus: nullcontext())
        yield
