"""One chunk of a candidate against the base where both are states and heads on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from kldcloud.corpus.chunks import Tokens
from kldcloud.divergence.linear.side import LinearSide
from kldcloud.divergence.linear.statistics import Begun, begin_statistics
from kldcloud.divergence.linear.stretches import BASE, CANDIDATE
from kldcloud.divergence.linear.to_host import OnTheWay
from kldcloud.divergence.linear.top import TopsBegun, begin_top_tokens
from kldcloud.divergence.worst import KEPT_A_CHUNK, WorstRows
from kldcloud.errors import EngineError, FormatError
from kldcloud.pipeline.compared import Compared
from kldcloud.staging.encodings import HiddenEncoding
from kldcloud.staging.head import OutputHead

_HALVES: Final = {"F16": torch.float16, "BF16": torch.bfloat16}


class BaseSide:
    """A base stage of hidden states on a GPU: the head stays there, states come with each chunk.

    Args:
        encoding: of the stage.
        device: torch's name of the GPU.
    """

    def __init__(self, encoding: HiddenEncoding, device: torch.device) -> None:
        self._encoding, self._device = encoding, device
        self._head = encoding.head
        self._weight = _weight(encoding.head).to(device)
        bias = encoding.head.bias
        self._bias = None if bias is None else torch.from_numpy(bias.copy()).to(device)

    def begin(
        self,
        frame: bytes | memoryview,
        candidate: LinearSide,
        next_tokens: Tokens,
        *,
        llama_compat: bool,
    ) -> ComparedSoon:
        """Give the GPU a chunk's comparison, which makes no row of logits; nobody waits for it.

        Args:
            frame: the base's states of the chunk.
            candidate: n rows, on the same GPU.
            next_tokens: int32 [n], the token that follows each position.
            llama_compat: also follow llama.cpp's arithmetic, in a second pass.

        Raises:
            FormatError: the frame is another model's.
            EngineError: there is no memory.
        """
        try:
            states = self._states(frame)
            base = LinearSide(
                states,
                self._weight,
                self._bias,
                self._head.after.softcap,
                self._head.after.scale,
            )
            begun = begin_statistics(base, candidate, next_tokens, llama_compat=llama_compat)
            rows = _largest_rows(begun.kld)
            return ComparedSoon(
                begun,
                OnTheWay(states.isfinite().all()),
                OnTheWay(rows),
                begin_top_tokens(base, rows, begun.log_mass[BASE]),
                begin_top_tokens(candidate, rows, begun.log_mass[CANDIDATE]),
            )
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"not enough GPU memory to compare a chunk: {error}",
                hint="use a smaller context, or a GPU with more memory",
            ) from error

    def _states(self, frame: bytes | memoryview) -> torch.Tensor:
        """The base's states [n, d] on the GPU, in the type that the head is multiplied in."""
        kind = _HALVES.get(self._head.type_name)
        if kind is None:
            return torch.from_numpy(self._encoding.states(frame)).to(self._device)
        packed = self._encoding.packed(frame)
        on_gpu = self._device.type == "cuda"
        # From other memory the copy would wait until the GPU has done all it was given before.
        host = torch.empty(len(packed), dtype=torch.uint8, pin_memory=on_gpu)
        host.numpy()[:] = packed
        return host.view(kind).reshape(-1, self._head.width).to(self._device, non_blocking=True)


@dataclass(frozen=True, slots=True, eq=False)
class ComparedSoon:
    """A chunk's comparison that the GPU may still be at."""

    begun: Begun
    finite: OnTheWay
    rows: OnTheWay
    base: TopsBegun
    candidate: TopsBegun

    def result(self) -> Compared:
        """Wait for it.

        Raises:
            FormatError: the base's states are damaged.
            EngineError: a logit is not finite.
        """
        if not self.finite.array():
            raise FormatError("a frame of hidden states holds a value that is not finite")
        found, rows = self.begun.result(), self.rows.array()
        worst = WorstRows(
            rows.astype(np.int32), found.kld[rows], self.base.result(), self.candidate.result()
        )
        return Compared(found, worst)


def _largest_rows(kld: torch.Tensor) -> torch.Tensor:
    """As `worst.largest_rows`, on the GPU: the earlier of equals, ascending, int64."""
    order = kld.sort(descending=True, stable=True).indices
    return order[:KEPT_A_CHUNK].sort().values


def _weight(head: OutputHead) -> torch.Tensor:
    """A head's matrix [V, d]: half precision as it is, all else as float32."""
    kind = _HALVES.get(head.type_name)
    if kind is None:
        return torch.from_numpy(head.widened(0, head.vocabulary).copy())
    raw = torch.from_numpy(head.data.copy())
    return raw.view(kind).reshape(head.vocabulary, head.width)
