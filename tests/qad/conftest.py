"""Fixtures that tests of training share: a teacher, its inits, and one thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.qad.small_training import tiny_init, tiny_nvfp4, tiny_teacher


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Models as small as these are quicker on one thread than on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For reading only, as are its inits."""
    return tiny_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def init(teacher: Path) -> Path:
    """The teacher in Q4_0."""
    return tiny_init(teacher)


@pytest.fixture(scope="session")
def nvfp4_init(teacher: Path) -> Path:
    """The teacher in NVFP4."""
    return tiny_nvfp4(teacher)
