"""Where a ggml block keeps its scales and its integer codes, for the types that QAD trains.

Each of these types means the same thing: a group of weights shares a step and perhaps a base, and
a weight is ``step * code + base``. Only the places of the bits differ, and those are a table here.
Source of the layouts: the structs of ggml-common.h and the loops of ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from kldcloud.models.ggml_types import GGML_TYPES

U8 = npt.NDArray[np.uint8]
I8 = npt.NDArray[np.int8]
F4 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scales:
    """What the groups of some blocks share, in float32 as ggml computes it.

    Attributes:
        step: ``[blocks, groups]``; may be zero or negative.
        base: ``[blocks, groups]``, or None for a type whose code 0 is the weight 0.
    """

    step: F4
    base: F4 | None


@dataclass(frozen=True, slots=True)
class BitField:
    """Some bits of every code of a block, several codes to a byte.

    With ``8 // bits`` codes to a byte, a stretch of bytes holds code after code in its lowest
    bits first, then in the next ones.

    Attributes:
        start: first byte in the block.
        count: bytes of it.
        bits: of one code.
        stretch: bytes in a stretch; a block holds a whole number of them.
    """

    start: int
    count: int
    bits: int
    stretch: int

    def read(self, blocks: U8) -> U8:
        """Take the field out of ``[blocks, bytes]``: ``[blocks, elements]``, each below 2^bits."""
        stored = blocks[:, self.start : self.start + self.count]
        fields = stored.reshape(len(blocks), -1, 1, self.stretch) >> self._shifts()
        mask = np.uint8((1 << self.bits) - 1)
        return (fields & mask).reshape(len(blocks), -1)

    def write(self, blocks: U8, values: U8) -> None:
        """Put the lowest bits of `values` ``[blocks, elements]`` into ``[blocks, bytes]``."""
        mask = np.uint8((1 << self.bits) - 1)
        fields = (values & mask).reshape(len(blocks), -1, 8 // self.bits, self.stretch)
        stored = np.bitwise_or.reduce(fields << self._shifts(), axis=2)
        blocks[:, self.start : self.start + self.count] = stored.reshape(len(blocks), -1)

    def _shifts(self) -> U8:
        return np.arange(0, 8, self.bits, dtype=np.uint8)[:, None]


@dataclass(frozen=True, slots=True)
class BlockType:
    """One storage type whose grid can be frozen.

    Attributes:
        name: such as ``"Q4_K"``.
        elements: codes in a block.
        nbytes: bytes of a block.
        group: consecutive codes that share a step.
        bits: of a code.
        zero: the stored number that means code 0; codes run from ``-zero``. Q8_0 stores its codes
            in two's complement instead, and has 0 here.
        scales: reads the steps and bases of ``[blocks, bytes]``.
        low: the lowest bits of the codes.
        high: the bits above them, where a type keeps them apart.
    """

    name: str
    elements: int
    nbytes: int
    group: int
    bits: int
    zero: int
    scales: Callable[[U8], Scales]
    low: BitField
    high: BitField | None = None

    @property
    def lowest(self) -> int:
        """The smallest code."""
        return -128 if self.bits == 8 else -self.zero  # noqa: PLR2004 - see `zero`

    @property
    def highest(self) -> int:
        """The largest code."""
        return self.lowest + (1 << self.bits) - 1

    def codes(self, blocks: U8) -> I8:
        """Read the codes of ``[blocks, nbytes]``: int8 ``[blocks, elements]``."""
        stored = self.low.read(blocks)
        if self.high is not None:
            stored |= self.high.read(blocks) << np.uint8(self.low.bits)
        # Wrapping around in eight bits is what makes two's complement of it.
        return (stored - np.uint8(self.zero)).view(np.int8)

    def write_codes(self, blocks: U8, codes: I8) -> None:
        """Write codes ``[blocks, elements]`` into ``[blocks, nbytes]``, beside its scales."""
        stored = codes.view(np.uint8) + np.uint8(self.zero)
        self.low.write(blocks, stored)
        if self.high is not None:
            self.high.write(blocks, stored >> np.uint8(self.low.bits))


def _half(blocks: U8, start: int) -> F4:
    """The float16 at byte `start` of every block, as float32 ``[blocks, 1]``."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float32)


def _step_only(blocks: U8) -> Scales:
    return Scales(_half(blocks, 0), None)


def _step_and_minimum(blocks: U8) -> Scales:
    return Scales(_half(blocks, 0), _half(blocks, 2))


def _six_bit_scales(blocks: U8) -> Scales:
    """Steps and bases of Q4_K and Q5_K: eight pairs of 6-bit factors in twelve bytes.

    The first four of each kind lie whole in bytes 0-3 and 4-7. Of the other four, bytes 8-11 hold
    the low four bits (steps below, minima above), and the two top bits of bytes 0-7 the rest.
    """
    first, second, rest = (blocks[:, start : start + 4] for start in (4, 8, 12))
    six, four, two = np.uint8(63), np.uint8(15), np.uint8(0x30)
    steps = np.concatenate([first & six, (rest & four) | (first >> np.uint8(2) & two)], axis=1)
    minima = np.concatenate(
        [second & six, (rest >> np.uint8(4)) | (second >> np.uint8(2) & two)], axis=1
    )
    base = _half(blocks, 2) * minima.astype(np.float32)
    return Scales(_half(blocks, 0) * steps.astype(np.float32), np.negative(base, out=base))


def _signed_scales(blocks: U8) -> Scales:
    """Steps of Q6_K: sixteen int8 factors before the block's own float16."""
    factors = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return Scales(_half(blocks, 208) * factors.astype(np.float32), None)


def _types() -> dict[str, BlockType]:
    sizes = {kind.name: (kind.block_elements, kind.block_bytes) for kind in GGML_TYPES.values()}

    def kind(
        name: str,
        bits: int,
        zero: int,
        scales: Callable[[U8], Scales],
        low: BitField,
        high: BitField | None = None,
        *,
        group: int = 32,
    ) -> BlockType:
        return BlockType(name, *sizes[name], group, bits, zero, scales, low, high)

    made = (
        kind("Q4_0", 4, 8, _step_only, BitField(2, 16, 4, 16)),
        kind("Q4_1", 4, 0, _step_and_minimum, BitField(4, 16, 4, 16)),
        kind("Q5_0", 5, 16, _step_only, BitField(6, 16, 4, 16), BitField(2, 4, 1, 1)),
        kind("Q5_1", 5, 0, _step_and_minimum, BitField(8, 16, 4, 16), BitField(4, 4, 1, 1)),
        kind("Q8_0", 8, 0, _step_only, BitField(2, 32, 8, 32)),
        kind("Q4_K", 4, 0, _six_bit_scales, BitField(16, 128, 4, 32)),
        kind("Q5_K", 5, 0, _six_bit_scales, BitField(48, 128, 4, 32), BitField(16, 32, 1, 32)),
        kind(
            "Q6_K",
            6,
            32,
            _signed_scales,
            BitField(0, 128, 4, 64),
            BitField(128, 64, 2, 32),
            group=16,
        ),
    )
    return {block.name: block for block in made}


BLOCK_TYPES: Final[Mapping[str, BlockType]] = MappingProxyType(_types())
