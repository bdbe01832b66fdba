"""A model in safetensors on transformers: one chunk in, the logits of its scored positions out.

The states come from the model's own forward pass; the output head's product is made here, because
what transformers returns in half precision is rounded to 8 or 11 bits, which is more than a good
quantisation loses. Products are those of the stored numbers, summed in float32. When a model is
loaded, logits made in this way are compared with its own.

A batch is one chunk. Evaluating it in parts would take less memory and give other bits, so a GPU
that has no room for it gives back layers, where `offload` allows that, and else says what it lacks.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from kldcloud.errors import EngineError, KldcloudError
from kldcloud.models.engine import ChunkOutput, Tokens, Vocabulary
from kldcloud.models.model_folder import ModelFolder, read_model_folder
from kldcloud.models.transformers_head import (
    after_head,
    catcher,
    is_plain,
    linear_side,
    own_logits,
    plain_head,
)
from kldcloud.models.transformers_load import MORE_MEMORY, OFFLOAD, in_a_line, load_transformers
from kldcloud.models.transformers_offload import WORKSPACE
from kldcloud.models.transformers_options import TransformersOptions
from kldcloud.models.transformers_tokenizer import folder_vocabulary

if TYPE_CHECKING:
    import torch

    from kldcloud.divergence.linear.side import LinearSide

    Forward = Callable[[npt.NDArray[np.int64]], torch.Tensor]

_PROBE: Final = 32
"""Tokens on which our logits are compared with the model's own."""
_LEAST_TOLERANCE: Final = 1e-4
"""Of the largest logit: sums of a few thousand float32 products in another order."""


class TransformersEngine:
    """A model loaded for chunks of one length.

    Args:
        path: a folder that `read_model_folder` takes.
        context: tokens a chunk.
        options: how to run it.
        threads: for the head's product on a CPU; they change no bit of it.

    Raises:
        FormatError: the folder is no model.
        EngineError: transformers refuses it, or there is no memory for it.
    """

    def __init__(
        self, path: Path, context: int, options: TransformersOptions, *, threads: int = 1
    ) -> None:
        import torch

        folder = read_model_folder(path)
        self._path, self._context, self._options = path, context, options
        self._folder, self._threads = folder, threads
        self._scored = slice(context // 2, context - 1)
        self._vocabulary = folder_vocabulary(folder)
        if options.device == "cpu":
            torch.set_num_threads(options.threads)
        self._buffer: npt.NDArray[np.float32] | None = None
        self._workspace = WORKSPACE
        self._load()

    def _load(self) -> None:
        self._model: Any = load_transformers(self._folder, self._options, self._workspace)
        self._head: Any = self._model.get_output_embeddings()
        if self._head is None:
            raise EngineError(
                f"{self._path}: its class {type(self._model).__name__} has no output head",
                hint="only causal language models can be measured",
            )
        self._after = after_head(self._model.config)
        self._plain = plain_head(self._head, self._vocabulary.size, self._after)
        self._in_place_of_head: Any = None
        if self._options.head == "float32":
            self._make_logits_here(self._folder)

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    @property
    def fingerprint(self) -> Mapping[str, str]:
        return self._options.fingerprint()

    @property
    def on_gpu(self) -> bool:
        return self._options.device != "cpu"

    @property
    def kept(self) -> int:
        return 1

    def states(self, tokens: Tokens) -> npt.NDArray[np.float32] | None:
        """What enters the output head at a chunk's scored positions, float32 [rows, d]; a copy.

        Returns:
            None where logits are the model's own.

        Raises:
            EngineError: as `evaluate`.
        """
        if self._options.head != "float32":
            return None
        found: npt.NDArray[np.float32] = self._scored_states(tokens).float().cpu().numpy()
        return found

    def side(self, tokens: Tokens) -> LinearSide | None:
        """States and head of a chunk's scored positions; None on a CPU, or without a plain head.

        Raises:
            EngineError: as `evaluate`.
        """
        head = self._head
        if not self.on_gpu or self._options.head != "float32" or not is_plain(head):
            return None
        states = self._scored_states(tokens)
        return linear_side(head, states, self._vocabulary.size, self._after)

    def evaluate(self, tokens: Tokens, *, hidden: bool = False) -> ChunkOutput:
        """Logits of positions n_ctx/2 .. n_ctx-2, which predict the token after them.

        Raises:
            EngineError: if there is no memory for it, or the head's states cannot be had.
        """
        if self._options.head == "model":
            if hidden:
                raise EngineError("no hidden states are taken where head is 'model'")
            with self._out_of_memory_named():
                own = self._with_room(self._own, self._fed(tokens))
                return ChunkOutput(self._filled(own[self._scored]), None)
        states = self._scored_states(tokens)
        with self._out_of_memory_named():
            logits = self._filled(self._logits(states))
        return ChunkOutput(logits, states.float().cpu().numpy() if hidden else None)

    def _scored_states(self, tokens: Tokens) -> torch.Tensor:
        """What enters the output head at a chunk's scored positions, [rows, d]."""
        with self._out_of_memory_named():
            return self._with_room(self._states, self._fed(tokens))[self._scored]

    def _with_room(self, forward: Forward, tokens: npt.NDArray[np.int64]) -> torch.Tensor:
        """A forward pass; where there is no memory for it, layers leave the GPU until there is."""
        import torch

        while True:
            try:
                return forward(tokens)
            except torch.OutOfMemoryError:
                if not self._options.offload:
                    raise
            # Not above: an exception keeps what its frames hold.
            self._unload()
            self._workspace *= 2
            self._load()

    def _fed(self, tokens: Tokens) -> npt.NDArray[np.int64]:
        fed = np.array(tokens, np.int64)
        if self._vocabulary.add_bos:
            fed[0] = self._vocabulary.bos
        return fed

    def _states(self, tokens: npt.NDArray[np.int64]) -> torch.Tensor:
        """What enters the output head, [n, d]; the head's own product is left out."""
        import torch

        with torch.inference_mode():
            self._model(input_ids=self._ids(tokens), use_cache=False)
        seen: list[torch.Tensor] = self._in_place_of_head.taken()
        if len(seen) != 1 or seen[0].shape[:2] != (1, len(tokens)):
            raise EngineError(
                f"{type(self._model).__name__} does not call its output head once for all tokens",
                hint="set engine.transformers.head: model to take its logits as they are",
            )
        return seen[0][0]

    def _logits(self, states: torch.Tensor) -> torch.Tensor | npt.NDArray[np.float32]:
        """float32 [rows, V] of states."""
        import torch

        if self._plain is not None and self._options.device == "cpu":
            out = self._room(len(states))
            self._plain.logits(states.float().numpy(), out=out, threads=self._threads)
            return out
        with torch.inference_mode():
            return own_logits(self._head, states, self._vocabulary.size, self._after)

    def _own(self, tokens: npt.NDArray[np.int64]) -> torch.Tensor:
        """The model's logits as it returns them, [n, V]."""
        import torch

        with torch.inference_mode():
            logits = self._model(input_ids=self._ids(tokens), use_cache=False).logits[0]
        found: torch.Tensor = logits[:, : self._vocabulary.size]
        return found

    def _ids(self, tokens: npt.NDArray[np.int64]) -> torch.Tensor:
        import torch

        # Not the model's own word for it: that is where its first weight is, or waits.
        return torch.from_numpy(tokens[None]).to(self._options.device)

    def _make_logits_here(self, folder: ModelFolder) -> None:
        """Take the head out of the model, and see that ours does what the whole model did."""
        import torch

        tokens = np.arange(_PROBE) * 997 % self._vocabulary.size
        with self._out_of_memory_named():
            own = self._own(tokens).float().cpu()
            self._in_place_of_head = catcher(self._head)
            self._model.set_output_embeddings(self._in_place_of_head)
            ours = torch.as_tensor(self._logits(self._states(tokens))).float().cpu()
        if not bool(own.isfinite().all()):
            raise EngineError(
                f"{folder.path}: its logits are not finite in {self._options.dtype}",
                hint="set engine.transformers.dtype to another type",
            )
        epsilon = torch.finfo(getattr(torch, self._options.dtype)).eps
        allowed = max(4 * epsilon, _LEAST_TOLERANCE) * float(own.abs().max())
        apart = float((ours - own).abs().max())
        if not apart <= allowed:
            raise EngineError(
                f"{folder.path}: {folder.architecture} does something to its logits that is not "
                f"known here: they are up to {apart:.2g} from the head's product",
                hint="set engine.transformers.head: model to take its logits as they are",
            )

    def _room(self, rows: int) -> npt.NDArray[np.float32]:
        if self._buffer is None or len(self._buffer) < rows:
            self._buffer = np.empty((rows, self._vocabulary.size), np.float32)
        return self._buffer[:rows]

    def _filled(self, logits: torch.Tensor | npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if isinstance(logits, np.ndarray):
            return logits
        out = self._room(len(logits))
        import torch

        torch.from_numpy(out).copy_(logits)
        return out

    @contextmanager
    def _out_of_memory_named(self) -> Iterator[None]:
        import torch

        try:
            yield
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"not enough GPU memory for a chunk of {self._context} tokens: {error}",
                hint=f"{MORE_MEMORY}, a smaller context"
                + ("" if self._options.offload else f", or {OFFLOAD}"),
            ) from error
        except KldcloudError:
            raise
        except Exception as error:
            raise EngineError(
                f"{self._path}: transformers failed on a chunk: {in_a_line(error)}"
            ) from error

    def close(self) -> None:
        """Free the model's memory now rather than at the end of the process."""
        self._unload()
        self._buffer = None

    def _unload(self) -> None:
        import torch

        self._model = self._head = self._plain = self._in_place_of_head = None
        gc.collect()
        if self._options.device != "cpu":
            torch.cuda.empty_cache()
