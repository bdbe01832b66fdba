"""Hidden states rounded and packed as the output head's type demands.

llama.cpp's CPU backend rounds activations to the head's dot type before the product. Kept at that
precision, and no higher, the rebuilt logits agree with the engine's own to about 1e-9 nats (the
table is in the design notes' measurements: f16 head with f16 states 1e-9, with f32 states 3e-7).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kldcloud.errors import FormatError

F4 = npt.NDArray[np.float32]

BLOCK = 32
"""Elements of a Q8_0 block: one float16 scale, 32 int8 values."""

SUPPORTED_HEADS = ("F32", "F16", "BF16", "Q8_0")
"""Head types whose activation rounding is known; others are staged as logits."""


def bytes_per_state(head_type: str, width: int) -> int:
    """Bytes of one packed state of `width` values."""
    if head_type == "Q8_0":
        return width // BLOCK * (BLOCK + 2)
    return width * {"F32": 4, "F16": 2, "BF16": 2}[head_type]


def pack_states(states: F4, head_type: str) -> bytes:
    """Round and pack float32 [rows, width] states; little-endian, row after row."""
    if head_type == "F32":
        return states.astype("<f4").tobytes()
    if head_type == "F16":
        return states.astype("<f2").tobytes()
    if head_type == "BF16":
        return _to_bf16(states).astype("<u2").tobytes()
    blocks = states.reshape(len(states), -1, BLOCK)
    largest = np.abs(blocks).max(axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(largest > 0, np.float32(127) / largest, np.float32(0))
    packed = np.zeros((*blocks.shape[:2], BLOCK + 2), np.uint8)
    packed[..., :2] = (largest / np.float32(127)).astype("<f2")[..., None].view(np.uint8)
    packed[..., 2:] = np.rint(blocks * inverse[..., None]).astype(np.int8).view(np.uint8)
    return packed.tobytes()


def unpack_states(frame: bytes | memoryview, head_type: str, rows: int, width: int) -> F4:
    """States as float32 [rows, width], ready for the product.

    Raises:
        FormatError: if the frame is not exactly that many states, or one is not finite.
    """
    check_size(frame, head_type, rows, width)
    if head_type == "F32":
        states = np.frombuffer(frame, "<f4").astype(np.float32)
    elif head_type == "F16":
        states = np.frombuffer(frame, "<f2").astype(np.float32)
    elif head_type == "BF16":
        states = from_bf16(np.frombuffer(frame, "<u2"))
    else:
        states = from_q8_0(np.frombuffer(frame, np.uint8))
    if not np.isfinite(states).all():
        raise FormatError("a frame of hidden states holds a value that is not finite")
    return states.reshape(rows, width)


def check_size(frame: bytes | memoryview, head_type: str, rows: int, width: int) -> None:
    """See that a frame has as many bytes as so many states take.

    Raises:
        FormatError: if it has not.
    """
    expected = rows * bytes_per_state(head_type, width)
    if len(frame) != expected:
        raise FormatError(
            f"a frame of hidden states has {len(frame)} bytes, the stage needs {expected}"
        )


def from_bf16(words: npt.NDArray[np.uint16]) -> F4:
    """bfloat16 bit patterns as float32."""
    return (words.astype(np.uint32) << 16).view(np.float32)


def from_q8_0(data: npt.NDArray[np.uint8]) -> F4:
    """Q8_0 blocks (uint8, any whole number of them) as flat float32."""
    blocks = data.reshape(-1, BLOCK + 2)
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    values = np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32)
    return (values * scale).reshape(-1)


def _to_bf16(values: F4) -> npt.NDArray[np.uint16]:
    bits = values.astype(np.float32).view(np.uint32)
    # Round half to even on the 16 bits that go, as ggml does.
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)
