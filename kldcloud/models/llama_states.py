"""Capturing the states that enter the output head, while llama.cpp evaluates.

llama.cpp can hand out embeddings itself, but then computes the head for every token of the chunk.
Its evaluation callback sees each graph node once it is computed: the post-norm states, already cut
down to the positions whose logits are wanted, are the node named `result_norm`.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from kldcloud.errors import EngineError
from kldcloud.models.ggml_tensor import ggml_base
from kldcloud.models.llama_library import llama

_NODE = b"result_norm"
_F32 = 0


class StateCapture:
    """Collects `result_norm` over the micro-batches of one chunk."""

    def __init__(self) -> None:
        self._parts: list[npt.NDArray[np.float32]] = []
        self._error: str | None = None
        self._base = ggml_base()
        self.callback: Any = llama().ggml_backend_sched_eval_callback(self._on_node)
        """The ctypes callback; it lives as long as this object, which must outlive the context."""

    def start(self) -> None:
        """Forget the last chunk, and collect during the next one."""
        self._parts = []
        self._error = None

    def take(self, rows: int) -> npt.NDArray[np.float32]:
        """The states of the chunk just evaluated, float32 [rows, d].

        Raises:
            EngineError: if the graph has no such node, or not of the expected shape.
        """
        data = np.concatenate(self._parts) if self._parts else np.empty(0, np.float32)
        if self._error or not data.size or data.size % rows:
            raise EngineError(
                f"no hidden states to be had: {self._error or 'no node result_norm'}",
                hint="use encoding: logits",
            )
        return data.reshape(rows, -1)

    def _on_node(self, tensor: int | None, ask: bool, _user: object) -> bool:
        if not tensor or self._base.ggml_get_name(tensor) != _NODE:
            # Asked whether the node is of interest: no. Told of a node: go on.
            return not ask
        if not ask:
            size = self._base.ggml_nbytes(tensor)
            kind = ctypes.c_int.from_address(tensor).value  # ggml_tensor starts with its type
            if kind != _F32:
                self._error = f"result_norm has ggml type {kind}"
            elif size:
                part = np.empty(size // 4, np.float32)
                self._base.ggml_backend_tensor_get(tensor, part.ctypes.data, 0, size)
                self._parts.append(part)
        return True
