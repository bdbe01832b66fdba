"""No tensor of the size of a row's logits times the rows, nor near it, is ever made."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from linear_sides import quantised, random_side, random_tokens
from torch.utils._python_dispatch import TorchDispatchMode

from kldcloud.divergence.linear.passes import TILE_BYTES
from kldcloud.divergence.linear.statistics import linear_statistics
from kldcloud.divergence.linear.top import begin_top_tokens


class Allocations(TorchDispatchMode):
    """Follows the storages that operations make.

    Attributes:
        largest: bytes of the largest.
        peak: most bytes that were alive together.
    """

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()
        self.largest = self.peak = 0
        self._alive: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor)
        return made

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place in self._known:
            return
        # Tensors that share a storage keep it alive together: it counts once.
        self._alive[id(tensor)] = place
        weakref.finalize(tensor, self._alive.pop, id(tensor), None)
        self._sizes[place] = size
        self.largest = max(self.largest, size)
        self.peak = max(self.peak, sum(self._sizes[each] for each in set(self._alive.values())))


@pytest.mark.parametrize("llama_compat", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_that_of_a_few_tiles(dtype: torch.dtype, llama_compat: bool) -> None:
    rows, vocabulary = 128, 151_936
    base = random_side(rows, vocabulary, 16, dtype=dtype)
    candidate = quantised(base, 0.1)
    tokens = random_tokens(rows, vocabulary)
    heads = (base.weight, candidate.weight)
    with Allocations(*heads) as seen:
        linear_statistics(base, candidate, tokens, llama_compat=llama_compat)
    logits = 4 * rows * vocabulary
    assert 1 << 20 < seen.largest < logits / 20
    assert seen.peak < 1.1 * TILE_BYTES["cpu"] < logits / 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_top_tokens_take_two_times_the_logits_of_their_own_rows(dtype: torch.dtype) -> None:
    rows, vocabulary = 256, 262_144
    side = random_side(rows, vocabulary, 64, dtype=dtype)
    with Allocations(side.weight) as seen:
        begin_top_tokens(side, torch.arange(0, rows, 8), torch.zeros(rows).double())
    logits = 4 * 32 * vocabulary
    assert logits <= seen.largest < 1.1 * logits
    assert seen.peak < 2.5 * logits
