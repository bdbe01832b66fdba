"""What a GGUF says about the shape of its model: read, bounded and checked, torch-free.

Defaults and meanings are llama.cpp's (`llama_model_base::load_hparams` and the models' own files):
what it would run is what the torch model must compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kldcloud.errors import FormatError
from kldcloud.models.dequantize import dequantize
from kldcloud.models.gguf_header import ArrayInfo, GgufHeader, read_tensor_bytes
from kldcloud.models.regular_file import DOWNLOAD_AGAIN

ROPE_DIVISORS = "rope_freqs.weight"
"""Llama 3's stretching of slow rotations: each rotary frequency is divided by its entry."""

_MOST = 1 << 30
_DEFAULT_ROPE_BASE = 10_000.0
_WINDOW_EVERY = 6  # Gemma 3: five layers with a window, then one without
_LAYERS_OF_27B = 62  # the one Gemma 3 whose queries are not scaled by their own width


@dataclass(frozen=True, slots=True)
class WindowedAttention:
    """Gemma 3's alternation of local and global layers.

    Attributes:
        size: positions a local layer sees, its own included.
        local: for each layer, whether it has the window.
        rope_base: rotary base of local layers, which are never stretched.
    """

    size: int
    local: tuple[bool, ...]
    rope_base: float


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """The numbers of one model.

    Attributes:
        architecture: ``general.architecture``.
        layers: blocks.
        width: d, of the residual stream.
        vocabulary: V, rows of the embedding.
        feed_forward: width of each block's MLP.
        heads: query heads a block.
        kv_heads: key and value heads a block.
        head_width: width of one head.
        context: positions the model was made for.
        epsilon: of the RMS norms.
        rope_base: rotary base.
        rope_factor: linear stretching of positions; 1.0 for none.
        rope_divisors: of the rotary frequencies, ``head_width / 2`` numbers, or None.
        tied: whether the output head is the embedding.
        windowed: local attention, or None where every layer sees everything.
        query_width: attention scores are divided by its square root.
        softcap: c of ``c * tanh(logits / c)``, or None.
    """

    architecture: str
    layers: int
    width: int
    vocabulary: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_width: int
    context: int
    epsilon: float
    rope_base: float
    rope_factor: float
    rope_divisors: tuple[float, ...] | None
    tied: bool
    windowed: WindowedAttention | None
    query_width: int
    softcap: float | None


def read_hyperparameters(path: Path, header: GgufHeader) -> Hyperparameters:
    """Read a model's numbers from its header, and its rotary divisors if it has them.

    Args:
        path: the file; only `ROPE_DIVISORS` is read from it.
        header: what `read_gguf_header` gave for it.

    Raises:
        FormatError: a number is missing, of another type, out of bounds or contradicts another,
            or asks for something that is not computed here (YaRN, per-layer widths).
    """
    keys = _Keys(path, header)
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:  # noqa: PLR2004
        raise keys.wrong("has no matrix 'token_embd.weight'")
    width, vocabulary = embedding.shape
    keys.must_be("embedding_length", width, "the width of token_embd.weight")
    if header.vocabulary_size not in (0, vocabulary):
        raise keys.wrong(
            f"has {header.vocabulary_size:,} tokens but {vocabulary:,} rows in token_embd.weight"
        )
    # Each layer has tensors of its own, so the table bounds what a layer count can cost.
    layers = keys.integer("block_count", most=len(header.tensors))
    heads = keys.integer("attention.head_count", most=width)
    kv_heads = keys.integer("attention.head_count_kv", default=heads, most=heads)
    if width % heads or heads % kv_heads:
        raise keys.wrong(f"has {heads} heads and {kv_heads} KV heads for a width of {width}")
    head_width = keys.integer("attention.key_length", default=width // heads, most=_MOST)
    if head_width % 2:
        raise keys.wrong(f"has heads of {head_width}: an odd width cannot be rotated")
    for name in ("attention.value_length", "rope.dimension_count"):
        default = width // heads if name == "attention.value_length" else head_width
        keys.must_be(name, head_width, "the width of a key", default=default)
    keys.refuse_unknown_rope()
    gemma = header.architecture == "gemma3"
    wide_query = gemma and layers == _LAYERS_OF_27B
    return Hyperparameters(
        architecture=header.architecture,
        layers=layers,
        width=width,
        vocabulary=vocabulary,
        feed_forward=keys.integer("feed_forward_length", most=_MOST),
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        context=keys.integer("context_length", most=_MOST),
        epsilon=keys.real("attention.layer_norm_rms_epsilon", most=1.0),
        rope_base=keys.real("rope.freq_base", default=_DEFAULT_ROPE_BASE, most=1e30),
        rope_factor=keys.rope_factor(),
        rope_divisors=_rope_divisors(path, header, head_width),
        tied="output.weight" not in header.tensors,
        windowed=_windowed(keys, layers) if gemma else None,
        query_width=width // heads if wide_query else head_width,
        softcap=(keys.real("final_logit_softcapping", default=0.0) or None) if gemma else None,
    )


class _Keys:
    """Metadata of the model's architecture, each value checked as it is read."""

    def __init__(self, path: Path, header: GgufHeader) -> None:
        self._path = path
        self._metadata = header.metadata
        self._prefix = header.architecture

    def wrong(self, what: str, *, hint: str = DOWNLOAD_AGAIN) -> FormatError:
        return FormatError(f"{self._path}: {what}", hint=hint)

    def find(self, name: str) -> object:
        return self._metadata.get(f"{self._prefix}.{name}")

    def integer(self, name: str, *, most: int, default: int | None = None, least: int = 1) -> int:
        value = self.find(name)
        if value is None and default is not None:
            return default
        if type(value) is not int or not least <= value <= most:
            raise self._out_of_bounds(name, value, f"a whole number from {least} to {most:,}")
        return value

    def real(self, name: str, *, default: float | None = None, most: float = 1e9) -> float:
        """A positive number; 0.0 too where that is the default, as it says `not used`."""
        value = self.find(name)
        if value is None and default is not None:
            return default
        unused = value == default == 0.0
        if type(value) is not float or not (unused or 0 < value <= most):
            raise self._out_of_bounds(name, value, f"a number above 0, at most {most:g}")
        return value

    def must_be(self, name: str, expected: int, what: str, *, default: int | None = None) -> None:
        value = self.integer(name, most=_MOST, default=default)
        if value != expected:
            raise self.wrong(f"{self._prefix}.{name} is {value:,}, but {what} is {expected:,}")

    def rope_factor(self) -> float:
        if self.find("rope.scaling.type") == "none":
            return 1.0
        older = self.real("rope.scale_linear", default=0.0)
        return self.real("rope.scaling.factor", default=0.0) or older or 1.0

    def refuse_unknown_rope(self) -> None:
        kind = self.find("rope.scaling.type")
        if kind not in (None, "none", "linear"):
            raise self.wrong(
                f"stretches positions by {kind!r}, which is not computed here",
                hint="use a model whose rope.scaling.type is linear or none",
            )
        if self.real("rope.scaling.attn_factor", default=1.0) != 1.0:
            raise self.wrong("scales attention with its context (rope.scaling.attn_factor)")

    def _out_of_bounds(self, name: str, value: object, wanted: str) -> FormatError:
        shown = "missing" if value is None else repr(value)[:60]
        if isinstance(value, ArrayInfo):
            shown = "a list with one value a layer"
        return self.wrong(f"{self._prefix}.{name} is {shown}, not {wanted}")


def _windowed(keys: _Keys, layers: int) -> WindowedAttention | None:
    size = keys.integer("attention.sliding_window", default=0, least=0, most=_MOST)
    if size == 0:
        return None
    name = "attention.sliding_window_pattern"
    pattern = keys.find(name)
    if isinstance(pattern, ArrayInfo):
        values = pattern.values or ()
        if len(values) != layers or not all(type(value) is bool for value in values):
            raise keys.wrong(f"gemma3.{name} is not one yes or no for each of {layers} layers")
        local = tuple(bool(value) for value in values)
    else:
        every = keys.integer(name, default=_WINDOW_EVERY, least=0, most=_MOST)
        local = tuple(every == 0 or layer % every < every - 1 for layer in range(layers))
    base = keys.real("rope.freq_base_swa", default=_DEFAULT_ROPE_BASE, most=1e30)
    return WindowedAttention(size, local, base)


def _rope_divisors(path: Path, header: GgufHeader, head_width: int) -> tuple[float, ...] | None:
    tensor = header.tensors.get(ROPE_DIVISORS)
    if tensor is None or header.architecture != "llama":
        return None
    if tensor.shape != (head_width // 2,) or tensor.type_name != "F32":
        raise FormatError(
            f"{path}: {ROPE_DIVISORS} is {tensor.type_name} {list(tensor.shape)}, "
            f"not F32 [{head_width // 2}]",
            hint=DOWNLOAD_AGAIN,
        )
    values = dequantize(read_tensor_bytes(path, tensor), tensor.type_name)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise FormatError(
            f"{path}: {ROPE_DIVISORS} holds a number that is not above 0", hint=DOWNLOAD_AGAIN
        )
    return tuple(float(value) for value in values)
