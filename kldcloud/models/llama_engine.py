"""A GGUF model on llama.cpp: one chunk in, the logits of its scored positions out.

A chunk is always evaluated alone, from an empty cache, in the same batches, so its logits do not
depend on which worker has it or what came before. Batch and micro-batch sizes are llama.cpp's own
defaults, which are also what llama-perplexity uses.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kldcloud.errors import EngineError, UserError
from kldcloud.models.amx import extra_buffers_work
from kldcloud.models.engine import ChunkOutput, Tokens, Vocabulary
from kldcloud.models.ggml_types import GGML_TYPES
from kldcloud.models.llama_library import buffer_type, build_facts, llama, recent_complaints
from kldcloud.models.llama_states import StateCapture

if TYPE_CHECKING:
    from kldcloud.divergence.linear.side import LinearSide

# Not the binding's names: it has none for BF16.
_TYPE_NUMBERS = {kind.name: number for number, kind in GGML_TYPES.items()}

BATCH = 2048
MICRO_BATCH = 512


@dataclass(frozen=True, slots=True)
class LlamaOptions:
    """How llama.cpp runs a model.

    Attributes:
        n_gpu_layers: layers on the GPU; -1 for all, and with 0 no GPU has any part in it.
        tensor_overrides: tensor-name pattern to buffer type, such as MoE experts to CPU.
        threads: CPU threads of one worker.
        flash_attention: auto, on or off.
        kv_type_k: ggml type of the key cache.
        kv_type_v: ggml type of the value cache.
        repack: let the CPU backend repack weights for its vector units.
    """

    n_gpu_layers: int = 0
    tensor_overrides: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    flash_attention: str = "auto"
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"
    repack: bool = True

    def fingerprint(self) -> dict[str, str]:
        """What these options and the build add up to, for keys and reports.

        Thread counts are left out: llama.cpp gives the same logits for any (a test says so).
        """
        return dict(build_facts(gpus=self.n_gpu_layers != 0)) | {
            "n_gpu_layers": str(self.n_gpu_layers),
            "tensor_overrides": ",".join(f"{k}={v}" for k, v in self.tensor_overrides.items()),
            "flash_attention": self.flash_attention,
            "kv_type_k": self.kv_type_k,
            "kv_type_v": self.kv_type_v,
            "repack": str(self.repack and extra_buffers_work()).lower(),
            "micro_batch": str(MICRO_BATCH),
        }


class _TensorOverride(ctypes.Structure):
    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


class LlamaEngine:
    """A model loaded for chunks of one length.

    Args:
        path: a GGUF file, already checked by `read_gguf_header`.
        context: tokens a chunk.
        options: how to run it.

    Raises:
        EngineError: if llama.cpp refuses the model or there is no memory for it.
    """

    def __init__(self, path: Path, context: int, options: LlamaOptions) -> None:
        self._binding = llama()
        self._context_size = context
        self._options = options
        self._capture = StateCapture()
        recent_complaints()
        self._model = load_model(path, options)
        try:
            self._vocabulary = vocabulary_of(self._binding.llama_model_get_vocab(self._model))
            self._ctx = new_context(self._model, path, context, options, self._capture.callback)
        except BaseException:
            # Nobody has this engine to close it, and the worker goes on with another model.
            self._binding.llama_model_free(self._model)
            raise
        self._batch = self._binding.llama_batch_init(min(BATCH, context), 0, 1)
        self._joined: npt.NDArray[np.float32] | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    @property
    def fingerprint(self) -> Mapping[str, str]:
        return self._options.fingerprint()

    @property
    def on_gpu(self) -> bool:
        return self._options.n_gpu_layers != 0

    def side(self, tokens: Tokens) -> LinearSide | None:  # noqa: ARG002
        """None: llama.cpp makes the logits itself, and hands them out on the host."""
        return None

    def states(self, tokens: Tokens) -> npt.NDArray[np.float32] | None:  # noqa: ARG002
        """None: llama.cpp's graph has the head in it."""
        return None

    def evaluate(self, tokens: Tokens, *, hidden: bool = False) -> ChunkOutput:
        """Logits of positions n_ctx/2 .. n_ctx-2, which predict the token after them.

        Raises:
            EngineError: if llama.cpp fails to decode.
        """
        n = self._context_size
        first = n // 2
        rows = n - 1 - first
        binding = self._binding
        fed = np.array(tokens, np.int32)
        if self._vocabulary.add_bos:
            fed[0] = self._vocabulary.bos
        binding.llama_memory_clear(binding.llama_get_memory(self._ctx), True)
        self._capture.start(wanted=hidden)
        single = n <= BATCH
        for start in range(0, n, BATCH):
            stop = min(start + BATCH, n)
            outputs = fill_batch(self._batch, fed, start, stop, first)
            if binding.llama_decode(self._ctx, self._batch) != 0:
                raise EngineError(f"llama.cpp failed to decode: {recent_complaints()}")
            if outputs and not single:
                self._join(self._logits(outputs), max(start, first) - first, rows + 1)
        logits = self._logits(rows + 1) if single else self._joined
        if logits is None:
            raise EngineError("llama.cpp produced no logits")
        states = self._capture.take(rows + 1)[:rows] if hidden else None
        return ChunkOutput(logits[:rows], states)

    def _logits(self, rows: int) -> npt.NDArray[np.float32]:
        pointer = self._binding.llama_get_logits(self._ctx)
        if not pointer:
            raise EngineError("llama.cpp produced no logits")
        return np.ctypeslib.as_array(pointer, shape=(rows, self._vocabulary.size))

    def _join(self, part: npt.NDArray[np.float32], at: int, rows: int) -> None:
        if self._joined is None:
            self._joined = np.empty((rows, self._vocabulary.size), np.float32)
        self._joined[at : at + len(part)] = part

    def close(self) -> None:
        """Free the model's memory now rather than at the end of the process."""
        if self._ctx:
            self._binding.llama_batch_free(self._batch)
            self._binding.llama_free(self._ctx)
            self._binding.llama_model_free(self._model)
            self._ctx = self._model = None


def new_context(
    model: Any,  # noqa: ANN401 - pointers of ctypes
    path: Path,
    context: int,
    options: LlamaOptions,
    callback: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """A context for chunks of `context` tokens that `llama_free` frees.

    Args:
        model: from `load_model`.
        path: its file, for the error.
        context: tokens a chunk.
        options: how to run it.
        callback: sees the graph's nodes as they are computed; it must outlive the context.

    Raises:
        EngineError: if llama.cpp has no memory for it.
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
    params.cb_eval = callback
    made = binding.llama_init_from_model(model, params)
    if not made:
        raise EngineError(
            f"{path}: llama.cpp could not make a context of {context} tokens: "
            f"{recent_complaints()}",
            hint="use a smaller context, or a machine with more memory",
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


def vocabulary_of(vocab: Any) -> Vocabulary:  # noqa: ANN401
    """The facts of a loaded vocabulary.

    Raises:
        UserError: for a tokenizer that appends EOS, which llama-perplexity refuses as well.
    """
    binding = llama()
    if binding.llama_vocab_get_add_eos(vocab):
        raise UserError(
            "this model's tokenizer appends an end-of-text token: chunks cannot be cut from it",
            hint="set tokenizer.ggml.add_eos_token to false in the GGUF",
        )
    return Vocabulary(
        size=binding.llama_vocab_n_tokens(vocab),
        add_bos=bool(binding.llama_vocab_get_add_bos(vocab)),
        bos=binding.llama_vocab_bos(vocab),
    )


def load_model(path: Path, options: LlamaOptions, *, vocab_only: bool = False) -> Any:  # noqa: ANN401
    """A model that `llama_model_free` frees; without its weights, if only its vocabulary is wanted.

    Raises:
        EngineError: if llama.cpp refuses it.
    """
    binding = llama()
    params = binding.llama_model_default_params()
    params.n_gpu_layers = options.n_gpu_layers
    if options.n_gpu_layers == 0:
        # Left to itself it multiplies large batches on a GPU even where no layer is kept there.
        none = (ctypes.c_void_p * 1)()
        params.devices = ctypes.cast(none, ctypes.c_void_p)
    params.use_extra_bufts = options.repack and extra_buffers_work()
    params.vocab_only = vocab_only
    overrides = (_TensorOverride * (len(options.tensor_overrides) + 1))()
    for slot, (pattern, name) in zip(overrides, options.tensor_overrides.items(), strict=False):
        slot.pattern, slot.buffer_type = pattern.encode(), buffer_type(name)
    if options.tensor_overrides:
        params.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
    model = binding.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise EngineError(
            f"{path}: llama.cpp could not load it: {recent_complaints()}",
            hint="check the file, its architecture and the free memory",
        )
    return model
