"""One chunk of a candidate against the base where both are states and heads on a GPU."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from kldcloud.corpus.chunks import Tokens
from kldcloud.divergence.linear.side import LinearSide
from kldcloud.divergence.linear.statistics import linear_statistics
from kldcloud.divergence.linear.top import linear_top_tokens
from kldcloud.divergence.worst import KEPT_A_CHUNK, WorstRows, largest_rows
from kldcloud.errors import EngineError
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

    def compare(
        self,
        frame: bytes | memoryview,
        candidate: LinearSide,
        next_tokens: Tokens,
        *,
        llama_compat: bool,
    ) -> Compared:
        """A chunk's statistics, without any row of logits.

        Args:
            frame: the base's states of the chunk.
            candidate: n rows, on the same GPU.
            next_tokens: int32 [n], the token that follows each position.
            llama_compat: also follow llama.cpp's arithmetic, in a second pass.

        Raises:
            FormatError: the frame is damaged, or another model's.
            EngineError: a logit is not finite, or there is no memory.
        """
        states = torch.from_numpy(self._encoding.states(frame))
        base = LinearSide(
            states.to(self._device, _HALVES.get(self._head.type_name, torch.float32)),
            self._weight,
            self._bias,
            self._head.after.softcap,
            self._head.after.scale,
        )
        try:
            found = linear_statistics(base, candidate, next_tokens, llama_compat=llama_compat)
            rows = largest_rows(found.kld, KEPT_A_CHUNK)
            chosen = torch.from_numpy(rows.astype(np.int64)).to(self._device)
            tops = [linear_top_tokens(side, chosen) for side in (base, candidate)]
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"not enough GPU memory to compare a chunk: {error}",
                hint="use a smaller context, or a GPU with more memory",
            ) from error
        return Compared(found, WorstRows(rows.astype(np.int32), found.kld[rows], *tops))


def _weight(head: OutputHead) -> torch.Tensor:
    """A head's matrix [V, d]: half precision as it is, all else as float32."""
    kind = _HALVES.get(head.type_name)
    if kind is None:
        return torch.from_numpy(head.widened(0, head.vocabulary).copy())
    raw = torch.from_numpy(head.data.copy())
    return raw.view(kind).reshape(head.vocabulary, head.width)
