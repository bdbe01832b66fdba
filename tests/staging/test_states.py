"""Hidden states at the precision of the head's activations: rounded as ggml rounds, and back."""

from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from kldcloud.errors import FormatError
from kldcloud.staging.states import (
    SUPPORTED_HEADS,
    bytes_per_state,
    from_bf16,
    pack_states,
    unpack_states,
)

ROWS, WIDTH = 7, 96


def states(seed: int = 0) -> npt.NDArray[np.float32]:
    """Values of every size, with zeros, a row of zeros, exact halves and negative zero."""
    rng = np.random.default_rng(seed)
    found = (rng.normal(size=(ROWS, WIDTH)) * 10.0 ** rng.integers(-3, 3, (ROWS, 1))).astype("f4")
    found[2] = 0.0
    found[3, :32] = np.arange(-16, 16) / 2
    found[4, 5] = -0.0
    return found


@pytest.mark.parametrize("head", SUPPORTED_HEADS)
def test_a_state_takes_the_bytes_that_the_plan_counts(head: str) -> None:
    assert len(pack_states(states(), head)) == ROWS * bytes_per_state(head, WIDTH)


@pytest.mark.parametrize("head", SUPPORTED_HEADS)
def test_what_is_unpacked_packs_to_the_same_bytes(head: str) -> None:
    packed = pack_states(states(), head)
    assert pack_states(unpack_states(packed, head, ROWS, WIDTH), head) == packed


def test_f32_is_exact_and_f16_rounds_to_nearest() -> None:
    given = states()
    assert (unpack_states(pack_states(given, "F32"), "F32", ROWS, WIDTH) == given).all()
    half = unpack_states(pack_states(given, "F16"), "F16", ROWS, WIDTH)
    assert (half == given.astype(np.float16).astype(np.float32)).all()


@pytest.mark.parametrize("seed", range(5))
def test_bf16_has_the_bits_of_ggmls_own_rounding(seed: int) -> None:
    given = states(seed)
    ours = np.frombuffer(pack_states(given, "BF16"), np.uint8)
    theirs = gguf.quants.quantize(given, gguf.GGMLQuantizationType.BF16)
    assert (ours == theirs.view(np.uint8).ravel()).all()
    widened = gguf.quants.dequantize(theirs, gguf.GGMLQuantizationType.BF16)
    assert (from_bf16(ours.view("<u2")) == widened.ravel()).all()


@pytest.mark.parametrize("seed", range(5))
def test_q8_0_has_the_blocks_of_ggmls_own_rounding(seed: int) -> None:
    given = states(seed)
    ours = np.frombuffer(pack_states(given, "Q8_0"), np.uint8).reshape(-1, 34)
    theirs = gguf.quants.quantize(given, gguf.GGMLQuantizationType.Q8_0).reshape(-1, 34)
    assert (ours[:, :2] == theirs[:, :2]).all(), "the scales"
    # Reference code rounds halves away from zero; ggml's vector code, which evaluates models, to
    # even. Only exact halves may differ, and by one step.
    blocks = given.reshape(-1, 32)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    scaled = blocks * np.divide(127, largest, out=np.zeros_like(largest), where=largest > 0)
    apart = ours[:, 2:].view(np.int8).astype(int) - theirs[:, 2:].view(np.int8)
    halves = np.abs(scaled - np.trunc(scaled)) == 0.5
    assert (apart[~halves] == 0).all()
    assert (np.abs(apart) <= 1).all()
    back = unpack_states(ours.tobytes(), "Q8_0", ROWS, WIDTH)
    expected = gguf.quants.dequantize(ours.copy().reshape(ROWS, -1), gguf.GGMLQuantizationType.Q8_0)
    assert (back == expected).all()


@pytest.mark.parametrize("head", SUPPORTED_HEADS)
@pytest.mark.parametrize("change", [b"", b"\0", slice(0, -1), slice(0, 0)])
def test_a_frame_of_another_size_is_refused(head: str, change: bytes | slice) -> None:
    packed = pack_states(states(), head)
    frame = packed[change] if isinstance(change, slice) else packed + change
    if frame == packed:
        unpack_states(frame, head, ROWS, WIDTH)
        frame *= 2
    with pytest.raises(FormatError, match="a frame of hidden states has"):
        unpack_states(frame, head, ROWS, WIDTH)


@pytest.mark.parametrize(
    ("head", "bits"),
    [
        ("F32", b"\0\0\xc0\x7f"),
        ("F32", b"\0\0\x80\xff"),
        ("F16", b"\0\x7e"),
        ("BF16", b"\xc0\x7f"),
        ("Q8_0", b"\0\x7c"),
    ],
)
def test_a_value_that_is_not_finite_is_refused(head: str, bits: bytes) -> None:
    packed = bits + pack_states(np.ones((ROWS, WIDTH), np.float32), head)[len(bits) :]
    with pytest.raises(FormatError, match="not finite"):
        unpack_states(packed, head, ROWS, WIDTH)
