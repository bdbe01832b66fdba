"""Computing an importance matrix: which input columns of each weight matrix a text makes large.

llama.cpp evaluates the text, and its evaluation callback sees the input of every matrix product.
Which products count, how their rows are summed and what stands for an expert are as in llama.cpp's
`llama-imatrix`; only the sums are kept in double precision, so that their last digits do not depend
on how many rows came before.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kldcloud.errors import EngineError, KldcloudError
from kldcloud.models.cache import cache_folder
from kldcloud.models.child import Progress, run_child
from kldcloud.models.engine import Tokens
from kldcloud.models.ggml_tensor import GraphNode
from kldcloud.models.imatrix_file import Importance, ImportanceMatrix, imatrix_bytes
from kldcloud.models.llama_context import BATCH, fill_batch, new_context
from kldcloud.models.llama_engine import LlamaOptions, load_model, vocabulary_of
from kldcloud.models.llama_library import llama, recent_complaints
from kldcloud.store.digest import sha256_bytes

__all__ = ["collect_imatrix", "importance_matrix"]

# llama-imatrix passes over products of fewer rows.
_FEWEST_ROWS: Final = 16
# The states that enter the output head: its own importance is not asked for, and it is costly.
_LAST_NODE: Final = "result_norm"


def importance_matrix(
    source: Path,
    sha256: str,
    chunks: Tokens,
    options: LlamaOptions,
    *,
    dataset: str,
    progress: Progress | None = None,
) -> Path:
    """An importance matrix of a model as a GGUF, from the cache or computed now.

    Args:
        source: a GGUF file.
        sha256: its digest.
        chunks: int32 [n, context], as the corpus has them: a BOS rule is applied here.
        options: how the model is run.
        dataset: what the text is called.
        progress: called with chunks done and in all.

    Raises:
        EngineError: if llama.cpp fails or dies.
        StoreError: if the cache cannot be written.
    """
    facts = {
        "sha256": sha256,
        "tokens": sha256_bytes(chunks.astype("<i4").tobytes()),
        "context": int(chunks.shape[1]),
        "dataset": dataset,
        # Without thread counts, which change no bit.
        "engine": options.fingerprint(),
    }
    key = sha256_bytes(json.dumps(facts, sort_keys=True).encode())[:32]
    folder = cache_folder("imatrix", "importance matrices")
    target = folder / f"{key}.gguf"
    if target.exists():
        return target
    part = folder / f".{key}.{os.getpid()}.part"
    order = {"dataset": dataset, "options": asdict(options), "chunks": chunks.tolist()}
    try:
        ended = run_child(__name__, [str(source), str(part)], progress, order=json.dumps(order))
        if ended.code != 0:
            raise EngineError(
                f"{source.name}: no importance matrix could be computed: {ended.reason}",
                hint="check the free memory, or give a file that llama-imatrix made",
            )
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def collect_imatrix(
    path: Path,
    chunks: Tokens,
    options: LlamaOptions,
    progress: Progress | None = None,
) -> ImportanceMatrix:
    """The importance of a model's weight matrices for a text, in this process.

    Each chunk is evaluated alone and whole. Of the matrices outside the model's layers, the output
    head among them, nothing is collected, as llama-imatrix does it by default.

    Args:
        path: a GGUF file, already checked by `read_gguf_header`.
        chunks: int32 [n, context].
        options: how to run it.
        progress: called with chunks done and in all.

    Raises:
        EngineError: if llama.cpp refuses the model, fails to evaluate it, or sums are not finite.
        UserError: for a tokenizer that appends EOS.
    """
    binding = llama()
    recent_complaints()
    count, context = chunks.shape
    model = load_model(path, options)
    made = batch = None
    collector = _Collector()
    try:
        vocabulary = vocabulary_of(binding.llama_model_get_vocab(model))
        made = new_context(model, path, context, options, collector.callback)
        batch = binding.llama_batch_init(min(BATCH, context), 0, 1)
        for at, chunk in enumerate(chunks):
            fed = np.array(chunk, np.int32)
            if vocabulary.add_bos:
                fed[0] = vocabulary.bos
            binding.llama_memory_clear(binding.llama_get_memory(made), True)
            for start in range(0, context, BATCH):
                # Logits of all positions: where none is wanted, the last layer is cut short.
                fill_batch(batch, fed, start, min(start + BATCH, context), 0)
                code = binding.llama_decode(made, batch)
                collector.raise_failure()
                if code != 0:
                    raise EngineError(f"llama.cpp failed to decode: {recent_complaints()}")
            if progress:
                progress(at + 1, count)
    finally:
        if batch is not None:
            binding.llama_batch_free(batch)
        if made is not None:
            binding.llama_free(made)
        binding.llama_model_free(model)
    return ImportanceMatrix(collector.entries(), count, context)


class _Sums:
    """Squared activations of one tensor, float64 [matrices, columns], and rows, int64 [counts]."""

    def __init__(self, matrices: int, columns: int, counts: int) -> None:
        self.squares = np.zeros((matrices, columns))
        self.rows = np.zeros(counts, np.int64)


class _Collector:
    """Sums up the inputs of matrix products as llama.cpp evaluates them."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sums] = {}
        self._failure: Exception | None = None
        self._checked = False
        self.callback: Any = llama().ggml_backend_sched_eval_callback(self._on_node)
        """The ctypes callback; it lives as long as this object, which must outlive the context."""

    def raise_failure(self) -> None:
        """Raise what went wrong in the callback, where ctypes would have swallowed it."""
        if self._failure is not None:
            raise self._failure

    def entries(self) -> dict[str, Importance]:
        """What was collected, by tensor; sums rounded to float32.

        Raises:
            EngineError: if sums are not finite, or there are none.
        """
        if not self._sums:
            raise EngineError(
                "llama.cpp evaluated no matrix product that an importance matrix has",
                hint=f"give chunks of {_FEWEST_ROWS} tokens or more",
            )
        found = {}
        for name, sums in self._sums.items():
            squares = sums.squares.astype(np.float32).reshape(-1)
            if not np.isfinite(squares).all():
                raise EngineError(f"the inputs of {name} are not finite: the model is damaged")
            found[name] = Importance(squares, sums.rows)
        return found

    def _on_node(self, address: int | None, ask: bool, _user: object) -> bool:
        """Told of every node: whether it is wanted (ask), or that it is there (not ask).

        False to the second ends the evaluation of the graph.
        """
        try:
            if not address:
                return not ask
            node = GraphNode(address)
            if not self._checked:
                node.check_layout()
                self._checked = True
            if node.name == _LAST_NODE:
                return ask
            if ask:
                return _is_wanted(node)
            self._add(node)
        except Exception as error:  # noqa: BLE001 - raised again by whoever called llama.cpp
            self._failure = self._failure or error
            return False
        return True

    def _add(self, node: GraphNode) -> None:
        weight, inputs = node.source(0), node.source(1)
        values = inputs.values()
        if node.operation == "MUL_MAT_ID":
            self._add_experts(weight, values, node.source(2).values())
        else:
            self._add_product(weight, values)

    def _add_product(self, weight: GraphNode, values: npt.NDArray[Any]) -> None:
        """Add the rows of float32 [outer, inner, rows, columns]."""
        outer, inner = weight.shape[:2]
        # Rows that went through the same matrix: where it is one, through the same column of it.
        squares = np.square(values).sum(axis=2, dtype=np.float64)
        into = self._of(weight, outer * inner, values.shape[3], counts=1)
        for i, j in np.ndindex(squares.shape[:2]):
            into.squares[(i % outer) * inner + j % inner] += squares[i, j]
        into.rows += values[..., 0].size // (outer * inner)

    def _add_experts(
        self, weight: GraphNode, values: npt.NDArray[Any], chosen: npt.NDArray[Any]
    ) -> None:
        """Add the rows of float32 [1, tokens, 1 or used, columns].

        Args:
            weight: [1, experts, rows, columns].
            values: one row a token, or one for each expert that it goes to.
            chosen: int32 [1, 1, tokens, used], the experts of each token.
        """
        experts, columns = weight.shape[1], values.shape[3]
        whose = chosen[0, 0]
        squares = np.broadcast_to(np.square(values[0]), (*whose.shape, columns))
        into = self._of(weight, experts, columns, counts=experts)
        for expert in np.unique(whose):
            rows = squares[whose == expert]
            into.squares[expert] += rows.sum(axis=0, dtype=np.float64)
            into.rows[expert] += len(rows)

    def _of(self, weight: GraphNode, matrices: int, columns: int, *, counts: int) -> _Sums:
        name = _plain_name(weight.name)
        sums = self._sums.setdefault(name, _Sums(matrices, columns, counts))
        if sums.squares.shape != (matrices, columns) or len(sums.rows) != counts:
            raise EngineError(f"{name} is used as matrices of several shapes")
        return sums


def _is_wanted(node: GraphNode) -> bool:
    operation = node.operation
    if operation == "MUL_MAT_ID":
        return True
    if operation != "MUL_MAT":
        return False
    inputs = node.source(1)
    in_a_layer = _plain_name(node.source(0).name).startswith("blk.")
    return in_a_layer and inputs.is_float32 and inputs.shape[2] >= _FEWEST_ROWS


def _plain_name(name: str) -> str:
    """`blk.0.attn_k.weight` of `CUDA0#blk.0.attn_k.weight#0`, a copy on another device."""
    _, mark, rest = name.partition("#")
    return rest.partition("#")[0] if mark else name


def _main(source: str, target: str) -> int:
    order = json.load(sys.stdin)

    def tell(done: int, total: int) -> None:
        sys.stdout.write(f"[{done}/{total}]\n")
        sys.stdout.flush()

    try:
        matrix = collect_imatrix(
            Path(source),
            np.array(order["chunks"], np.int32),
            LlamaOptions(**order["options"]),
            tell,
        )
    except KldcloudError as error:
        sys.stdout.write(f"{error}\n")
        return 1
    Path(target).write_bytes(imatrix_bytes(matrix, order["dataset"]))
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
