"""Fixtures of the tests that read a run's state."""

from __future__ import annotations

from tests.pipeline.conftest import one_ray

__all__ = ["one_ray"]
