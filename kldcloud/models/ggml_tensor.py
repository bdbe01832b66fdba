"""Looking at a node of ggml's graph while llama.cpp evaluates: its kind, its inputs, its values.

ggml has no functions for a node's inputs, shape and strides: they are read from the struct itself,
whose layout is that of the one release that the binding is pinned to. `check_layout` sees that it
is.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from kldcloud.errors import EngineError
from kldcloud.models.llama_library import ggml

_DIMENSIONS: Final = 4
_F32, _I32 = 0, 26


class _Tensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h, up to its name."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * _DIMENSIONS),
        ("nb", ctypes.c_size_t * _DIMENSIONS),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


class GraphNode:
    """A tensor of a graph that is being evaluated; valid until its callback returns.

    Args:
        address: of the `ggml_tensor`.
    """

    def __init__(self, address: int) -> None:
        self._address = address
        self._tensor = _Tensor.from_address(address)

    @property
    def operation(self) -> str:
        """What makes it, such as MUL_MAT."""
        text: bytes = ggml_base().ggml_op_desc(self._address)
        return text.decode()

    @property
    def name(self) -> str:
        text: bytes = self._tensor.name
        return text.decode(errors="replace")

    @property
    def shape(self) -> tuple[int, ...]:
        """Four sizes in numpy's order: the contiguous dimension last."""
        return tuple(reversed(self._tensor.ne))

    @property
    def is_float32(self) -> bool:
        return bool(self._tensor.type == _F32)

    def source(self, index: int) -> GraphNode:
        """One of its inputs.

        Raises:
            EngineError: if it has none of that number.
        """
        address = self._tensor.src[index]
        if not address:
            raise EngineError(f"the node {self.name} of llama.cpp's graph lacks input {index}")
        return GraphNode(address)

    def values(self) -> npt.NDArray[np.float32] | npt.NDArray[np.int32]:
        """Its values as `shape`, copied from wherever they are; once it has been computed.

        Raises:
            EngineError: if it holds neither float32 nor int32.
        """
        kinds = {_F32: np.float32, _I32: np.int32}
        if self._tensor.type not in kinds:
            raise EngineError(f"the node {self.name} has ggml type {self._tensor.type}")
        # A view may have gaps between its rows: it is copied with them, and the strides skip them.
        data = np.empty(ggml_base().ggml_nbytes(self._address), np.uint8)
        ggml_base().ggml_backend_tensor_get(self._address, data.ctypes.data, 0, data.nbytes)
        return np.ndarray(
            self.shape, kinds[self._tensor.type], data, strides=tuple(reversed(self._tensor.nb))
        )

    def check_layout(self) -> None:
        """See that the struct is laid out as this file has it.

        Raises:
            EngineError: if ggml finds the name elsewhere: it is another release of ggml.
        """
        # A prototype of our own: elsewhere the same function gives the text and not its address.
        address_of_name = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
        found = address_of_name(("ggml_get_name", ggml_base()))(self._address)
        if found != self._address + _Tensor.name.offset:
            raise EngineError(
                "this build of llama.cpp lays its tensors out in another way",
                hint="install the one that kldcloud names: pip install 'kldcloud[llama]'",
            )


@cache
def ggml_base() -> ctypes.CDLL:
    """Ggml's base library, with the prototypes of what reads a graph's nodes."""
    base = ggml("base")
    base.ggml_get_name.restype = ctypes.c_char_p
    base.ggml_get_name.argtypes = [ctypes.c_void_p]
    base.ggml_op_desc.restype = ctypes.c_char_p
    base.ggml_op_desc.argtypes = [ctypes.c_void_p]
    base.ggml_nbytes.restype = ctypes.c_size_t
    base.ggml_nbytes.argtypes = [ctypes.c_void_p]
    base.ggml_backend_tensor_get.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
    ]
    return base
