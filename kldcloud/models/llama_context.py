"""What llama.cpp evaluates chunks in: a key-value cache, work space, and the latest logits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from kldcloud.errors import EngineError, FormatError
from kldcloud.models.engine import Tokens
from kldcloud.models.ggml_types import GGML_TYPES
from kldcloud.models.llama_library import llama, recent_complaints

if TYPE_CHECKING:
    from kldcloud.models.llama_engine import LlamaOptions

BATCH: Final = 2048
MICRO_BATCH: Final = 512

# Not the binding's names: it has none for BF16.
_TYPE_NUMBERS: Final = {kind.name: number for number, kind in GGML_TYPES.items()}


class LlamaContext:
    """A context of a loaded model, for chunks of one length.

    Args:
        model: from `load_model`; it must outlive the context.
        path: its file, for errors.
        context: tokens a chunk.
        options: how to run it.
        vocabulary: V.
        callback: sees the graph's nodes as they are computed; it must outlive the context. It is
            asked about a thousand of them a micro-batch, which takes as long as a small model does
            on a GPU.

    Raises:
        EngineError: if llama.cpp has no memory for it.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - pointers of ctypes
        path: Path,
        context: int,
        options: LlamaOptions,
        vocabulary: int,
        callback: Any = None,  # noqa: ANN401
    ) -> None:
        self._binding = llama()
        self._context, self._vocabulary = context, vocabulary
        self._made = new_context(model, path, context, options, callback)
        self._batch = self._binding.llama_batch_init(min(BATCH, context), 0, 1)
        self._joined: npt.NDArray[np.float32] | None = None

    def logits(self, fed: Tokens) -> npt.NDArray[np.float32]:
        """Evaluate a chunk alone, from an empty cache.

        Args:
            fed: int32 [context].

        Returns:
            float32 [context - context // 2, V] of its second half; valid until the next call.

        Raises:
            EngineError: if llama.cpp fails to decode.
        """
        binding, n = self._binding, self._context
        first = n // 2
        binding.llama_memory_clear(binding.llama_get_memory(self._made), True)
        single = n <= BATCH
        for start in range(0, n, BATCH):
            stop = min(start + BATCH, n)
            outputs = fill_batch(self._batch, fed, start, stop, first)
            if binding.llama_decode(self._made, self._batch) != 0:
                raise EngineError(f"llama.cpp failed to decode: {recent_complaints()}")
            if outputs and not single:
                self._join(self._last(outputs), max(start, first) - first, n - first)
        logits = self._last(n - first) if single else self._joined
        if logits is None:
            raise EngineError("llama.cpp produced no logits")
        return logits

    def _last(self, rows: int) -> npt.NDArray[np.float32]:
        """The logits of the batch decoded last, in llama.cpp's own buffer."""
        pointer = self._binding.llama_get_logits(self._made)
        if not pointer:
            raise EngineError("llama.cpp produced no logits")
        return np.ctypeslib.as_array(pointer, shape=(rows, self._vocabulary))

    def _join(self, part: npt.NDArray[np.float32], at: int, rows: int) -> None:
        if self._joined is None:
            self._joined = np.empty((rows, self._vocabulary), np.float32)
        self._joined[at : at + len(part)] = part

    def close(self) -> None:
        """Free its memory; the model stays."""
        if self._made:
            self._binding.llama_batch_free(self._batch)
            self._binding.llama_free(self._made)
            self._made = self._joined = None


def new_context(
    model: Any,  # noqa: ANN401 - pointers of ctypes
    path: Path,
    context: int,
    options: LlamaOptions,
    callback: Any = None,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """A context for chunks of `context` tokens that `llama_free` frees.

    Args:
        model: from `load_model`.
        path: its file, for the error.
        context: tokens a chunk.
        options: how to run it.
        callback: as for `LlamaContext`.

    Raises:
        EngineError: if llama.cpp has no memory for it.
        FormatError: if the model is none that predicts the next token.
    """
    binding = llama()
    params = binding.llama_context_default_params()
    params.n_ctx = context
    params.n_batch = min(BATCH, context)
    params.n_ubatch = min(MICRO_BATCH, params.n_batch)
    params.n_seq_max = 1
    params.n_threads = params.n_threads_batch = options.threads
    params.flash_attn_type = {"auto": -1, "off": 0, "on": 1}[options.flash_attention]
    params.type_k = _TYPE_NUMBERS[options.kv_type_k.upper()]
    params.type_v = _TYPE_NUMBERS[options.kv_type_v.upper()]
    params.swa_full = False
    if callback is not None:
        params.cb_eval = callback
    made = binding.llama_init_from_model(model, params)
    if not made:
        raise EngineError(
            f"{path}: llama.cpp could not make a context of {context} tokens: "
            f"{recent_complaints()}",
            hint="use a smaller context, or a machine with more memory",
        )
    # Of such a model llama.cpp hands out zeros for logits, or what it made of the next token.
    if not binding.llama_get_memory(made):
        binding.llama_free(made)
        raise FormatError(
            f"{path}: llama.cpp remembers no token for this architecture: it is no language model",
            hint="give a model that predicts the next token",
        )
    return made


def fill_batch(batch: Any, tokens: Tokens, start: int, stop: int, first: int) -> int:  # noqa: ANN401
    """Put positions `start` to `stop` of a chunk into a batch.

    Args:
        batch: from `llama_batch_init`, with room for them.
        tokens: int32 [n_ctx], the whole chunk.
        start: its first position.
        stop: the position after its last.
        first: the first position that logits are wanted of.

    Returns:
        Rows of logits that evaluating the batch gives.
    """
    batch.n_tokens = stop - start
    for i in range(stop - start):
        batch.token[i] = int(tokens[start + i])
        batch.pos[i] = start + i
        batch.n_seq_id[i] = 1
        batch.seq_id[i][0] = 0
        batch.logits[i] = start + i >= first
    return max(0, stop - max(start, first))
