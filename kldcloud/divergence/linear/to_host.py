"""Numbers on their way from a GPU, for which nobody waits until they are asked for."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


class OnTheWay:
    """A tensor being copied to the host's memory; on a CPU it is there.

    Args:
        tensor: the copy is queued behind what makes it.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._there: torch.cuda.Event | None = None
        if tensor.is_cuda:
            # Only to pinned memory does a GPU copy by itself.
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
            self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._there.record()
            tensor = host
        self._host = tensor

    def array(self) -> npt.NDArray[Any]:
        """The numbers, in memory of their own."""
        if self._there is None:
            return self._host.numpy()
        self._there.synchronize()
        return self._host.numpy().copy()
