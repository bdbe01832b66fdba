"""A GGUF model on llama.cpp: one chunk in, the logits of its scored positions out.

A chunk is always evaluated alone, from an empty cache, in the same batches, so its logits do not
depend on which worker has it or what came before. Batch and micro-batch sizes are llama.cpp's own
defaults, which are also what llama-perplexity uses.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from kldcloud.errors import EngineError, UserError
from kldcloud.models.amx import extra_buffers_work
from kldcloud.models.engine import ChunkOutput, Tokens, Vocabulary
from kldcloud.models.llama_context import MICRO_BATCH, LlamaContext
from kldcloud.models.llama_library import (
    buffer_type,
    build_facts,
    free_on_gpus,
    llama,
    recent_complaints,
)
from kldcloud.models.llama_states import StateCapture

if TYPE_CHECKING:
    from kldcloud.divergence.linear.side import LinearSide


_UNKNOWN: Final = re.compile(r"unknown (model architecture|pre-tokenizer type): '([^']*)'")


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
        self._path, self._context_size, self._options = path, context, options
        self._capture = StateCapture()
        recent_complaints()
        self._model = load_model(path, options)
        self._free_before = free_on_gpus() if self.on_gpu else []
        try:
            self._vocabulary = vocabulary_of(self._binding.llama_model_get_vocab(self._model))
        except BaseException:
            # Nobody has this engine to close it, and the worker goes on with another model.
            self._binding.llama_model_free(self._model)
            raise
        self._contexts: list[LlamaContext] = []
        self._watched: LlamaContext | None = None
        self._turn = 0
        self._second_to_open = self.on_gpu

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    @property
    def fingerprint(self) -> Mapping[str, str]:
        return self._options.fingerprint()

    @property
    def on_gpu(self) -> bool:
        return self._options.n_gpu_layers != 0

    @property
    def kept(self) -> int:
        return max(1, len(self._contexts))

    def side(self, tokens: Tokens) -> LinearSide | None:  # noqa: ARG002
        """None: llama.cpp makes the logits itself, and hands them out on the host."""
        return None

    def states(self, tokens: Tokens) -> npt.NDArray[np.float32] | None:  # noqa: ARG002
        """None: llama.cpp's graph has the head in it."""
        return None

    def evaluate(self, tokens: Tokens, *, hidden: bool = False) -> ChunkOutput:
        """Logits of positions n_ctx/2 .. n_ctx-2, which predict the token after them.

        Raises:
            EngineError: if llama.cpp fails to decode, or has no memory for it.
        """
        fed = np.array(tokens, np.int32)
        if self._vocabulary.add_bos:
            fed[0] = self._vocabulary.bos
        if not hidden:
            logits = self._next_context().logits(fed)
            if self._second_to_open:
                self._second_to_open = False
                self._open_second()
            return ChunkOutput(logits[:-1], None)
        self._watched = self._watched or self._new_context(self._capture.callback)
        self._capture.start()
        logits = self._watched.logits(fed)
        return ChunkOutput(logits[:-1], self._capture.take(len(logits))[:-1])

    def _next_context(self) -> LlamaContext:
        """The one whose logits are not those of the last chunk, where there are two."""
        if not self._contexts:
            self._contexts.append(self._new_context())
        self._turn = (self._turn + 1) % len(self._contexts)
        return self._contexts[self._turn]

    def _new_context(self, callback: Any = None) -> LlamaContext:  # noqa: ANN401
        return LlamaContext(
            self._model,
            self._path,
            self._context_size,
            self._options,
            self._vocabulary.size,
            callback,
        )

    def _open_second(self) -> None:
        """A second context, so that a GPU fills one while the logits of the other are read.

        Without it they would have to be copied first, with the GPU waiting. llama.cpp aborts where
        a GPU's memory ends in the midst of a graph: so what the first context took, work space of
        its first chunk included, has to be there twice over.
        """
        free = free_on_gpus()
        took = [before - now for before, now in zip(self._free_before, free, strict=True)]
        if all(now >= 2 * each for now, each in zip(free, took, strict=True)):
            with suppress(EngineError):
                self._contexts.append(self._new_context())

    def close(self) -> None:
        """Free the model's memory now rather than at the end of the process."""
        for context in (*self._contexts, self._watched):
            if context:
                context.close()
        self._contexts, self._watched = [], None
        if self._model:
            self._binding.llama_model_free(self._model)
            self._model = None


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
        UserError: if it is of a kind that this llama.cpp does not know.
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
        reason = recent_complaints()
        if unknown := _UNKNOWN.search(reason):
            raise UserError(
                f"{path}: this llama.cpp does not know the {unknown[1]} {unknown[2]!r}",
                hint="take another model, or a kldcloud with a newer llama.cpp",
            )
        raise EngineError(
            f"{path}: llama.cpp could not load it: {reason}",
            hint="check the file, its architecture and the free memory",
        )
    return model
